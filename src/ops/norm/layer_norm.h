// LayerNorm over the last dimension (Ba et al. 2016), without weights (OLMo): n = (x - mean(x)) · rstd,
// rstd = 1/sqrt(mean((x - mean(x))²) + eps).
//
// Only rstd is saved for backward: the mean is taken again, of what was kept.
#pragma once

#include "codec/codec.h"
#include "ops/linear/fp8.h"

namespace agoq::ops {

// x [T, H] -> n [T, H]. Keeps x (encoded, if keep_x is kept) and rstd [T] fp32 (if given) for backward.
Tensor layer_norm(const Context& ctx, const Tensor& x, float eps, const codec::Quantized& keep_x = {},
                  const Tensor& rstd = {});
// The same into a given n: numbers, or 8-bit floats with a scale per row, which are those of the numbers.
void layer_norm_into(const Context& ctx, const Tensor& x, float eps, const codec::Quantized& keep_x, const Tensor& rstd,
                     const Operand& n);
// n again, from what was kept.
Tensor recompute_layer_norm(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd);
// nᵀ [H, T] of it in 8-bit floats, for dW.
Operand recompute_layer_norm_transposed(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd,
                                        OperandFormat format);
// dx = residual + d(norm)(dn). dn, residual [T, H] -> dx [T, H], which may be the residual; `residual` may be empty.
// dx_rows, if given, is dx once more in 8-bit floats with a scale per row.
void layer_norm_backward_into(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                              const Tensor& residual, const Tensor& dx, const Operand& dx_rows = {});

}  // namespace agoq::ops
