// CPU kernel of ops/linear/fp8.h.
#pragma once

#include "ops/linear/delayed_scale.h"
#include "ops/linear/operand.h"

namespace agoq::ops::cpu {

// Its scratch, fp32: the largest magnitude of each row of the operand within each range of k that has scales of its
// own.
Shape row_amax_shape(const Operand& out);

// x is [rows, k] if k is its major, else [k, rows].
void to_fp8(const Tensor& x, Major x_major, const Operand& out, const Tensor& row_amax);
// With the scale of a site, which is that of `out`.
void to_fp8(const Tensor& x, Major x_major, const ScaleSite& site, const Operand& out, const Tensor& row_amax);
void note_amax(const Tensor& x, const Tensor& amax);

// The scales of `out` are known.
void to_fp8_transposed_with(const Tensor& x, const Operand& out);
// The scales, fp32 [in], of the transpose of w [out, in] in codes of `dtype` with a scale per row.
void find_transposed_scale(const Tensor& w, DType dtype, const Tensor& scale);
// x with a scale per row and a max_scale, which is that of `out`.
void transpose_codes(const Operand& x, const Operand& out);
// x [rows, cols padded] -> numbers [rows, cols].
void to_numbers(const Operand& x, const Tensor& numbers);
void largest_scale(const Tensor& scales, const Tensor& to);

}  // namespace agoq::ops::cpu
