// GPU kernels of ops/linear/fp8.h.
#pragma once

#include "device/context.h"
#include "ops/linear/operand.h"

namespace agoq::ops::cuda {

// x is [rows, k] if k is its major, else [k, rows]. Reads x once where a scale belongs to a row that a CTA can hold,
// else twice: for the scales, then for the codes.
void to_fp8(const Context& ctx, const Tensor& x, Major x_major, const Operand& out);
// The scale is known: reads x once.
void to_fp8_transposed(const Context& ctx, const Tensor& x, const Tensor& known_scale, const Operand& out);
// x with a scale per row and a max_scale, which is that of `out`.
void transpose_codes(const Context& ctx, const Operand& x, const Operand& out);
// x with a scale per row.
void to_numbers(const Context& ctx, const Operand& x, const Tensor& numbers);
void largest_scale(const Context& ctx, const Tensor& scales, const Tensor& to);
// Before a kernel that writes rows raises it.
void clear_max_scale(const Context& ctx, const Operand& out);

}  // namespace agoq::ops::cuda
