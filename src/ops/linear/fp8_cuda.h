// GPU kernels of ops/linear/fp8.h.
#pragma once

#include "device/context.h"
#include "ops/linear/delayed_scale.h"
#include "ops/linear/operand.h"

namespace agoq::ops::cuda {

// x is [rows, k] if k is its major, else [k, rows]. Reads x once where a scale belongs to a row that a CTA can hold,
// else twice: for the scales, then for the codes.
void to_fp8(const Context& ctx, const Tensor& x, Major x_major, const Operand& out);
// With the scale of a site, which is that of `out`: reads x once.
void to_fp8(const Context& ctx, const Tensor& x, Major x_major, const ScaleSite& site, const Operand& out);
void note_amax(const Context& ctx, const Tensor& x, const Tensor& amax);
// The scales are known, for all or per row: reads x once.
void to_fp8_transposed_with(const Context& ctx, const Tensor& x, const Operand& out);
// With a scale per row: reads w once if a CTA can hold a row; `of_ctas` is scratch for the scales of columns that each
// CTA finds, bf16 of column_scales_shape.
void weight_to_fp8(const Context& ctx, const Tensor& w, const Operand& out, const Tensor& of_ctas,
                   const Tensor& transposed_scale);
inline constexpr int64_t kMostHeldRow = 16384;  // numbers of a row that a CTA can hold
// Few rows fill the GPU with more CTAs; of many rows, fewer CTAs leave fewer scales to compare.
inline int weight_rows_of_cta(int64_t rows) {
  return rows <= 8192 ? 16 : 32;
}
inline Shape column_scales_shape(const Operand& out) {
  const int each = weight_rows_of_cta(out.rows());
  return {out.k() <= kMostHeldRow ? (out.rows() + each - 1) / each : 0, out.k()};
}
// x with a scale per row and a max_scale, which is that of `out`.
void transpose_codes(const Context& ctx, const Operand& x, const Operand& out);
// x with a scale per row.
void to_numbers(const Context& ctx, const Operand& x, const Tensor& numbers);
void largest_scale(const Context& ctx, const Tensor& scales, const Tensor& to);
// Before a kernel that writes rows raises it, if there is one.
void clear_max_scale(const Context& ctx, const Operand& out);
// Zeros in a few fp32, by a kernel: unlike cudaMemsetAsync it does not keep the next kernel from starting early.
void clear(const Context& ctx, const Tensor& numbers);

}  // namespace agoq::ops::cuda
