// CPU kernel of ops/linear/fp8.h.
#pragma once

#include "ops/linear/operand.h"

namespace agoq::ops::cpu {

// Its scratch, fp32: the largest magnitude of each row of the operand within each range of k that has scales of its
// own.
Shape row_amax_shape(const Operand& out);

// x is [rows, k] if k is its major, else [k, rows].
void to_fp8(const Tensor& x, Major x_major, const Operand& out, const Tensor& row_amax);

// The scale of every group is known.
void to_fp8_transposed(const Tensor& x, const Tensor& known_scale, const Operand& out);
// x with a scale per row and a max_scale, which is that of `out`.
void transpose_codes(const Operand& x, const Operand& out);
// x [rows, cols padded] -> numbers [rows, cols].
void to_numbers(const Operand& x, const Tensor& numbers);
void largest_scale(const Tensor& scales, const Tensor& to);

}  // namespace agoq::ops::cpu
