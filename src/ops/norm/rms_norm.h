// RMSNorm over the last dimension (Zhang & Sennrich 2019): n = x · rstd · w, rstd = 1/sqrt(mean(x²) + eps).
#pragma once

#include "codec/codec.h"
#include "ops/gradient/accumulate.h"
#include "ops/heads.h"
#include "ops/linear/fp8.h"

namespace agoq::ops {

// x [T, H], w [H] -> n [T, H]. Keeps x (encoded, if keep_x is kept) and rstd [T] fp32 (if given) for backward.
Tensor rms_norm(const Context& ctx, const Tensor& x, const Tensor& w, float eps, const codec::Quantized& keep_x = {},
                const Tensor& rstd = {});
// The same into a given n: numbers, or 8-bit floats with a scale per row (ops/linear/fp8.h: forward_input), which are
// those of the numbers in the compute type.
void rms_norm_into(const Context& ctx, const Tensor& x, const Tensor& w, float eps, const codec::Quantized& keep_x,
                   const Tensor& rstd, const Operand& n);
// n again, from what was kept.
Tensor recompute_rms_norm(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w);
// nᵀ [H, T] of it in 8-bit floats, for dW.
Operand recompute_rms_norm_transposed(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd,
                                      const Tensor& w, OperandFormat format);
// dx = residual + d(norm)(dn); dw accumulates. dn, residual [T, H] -> dx [T, H]. `residual` may be empty.
Tensor rms_norm_backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                         const Tensor& w, const Tensor& residual, const MainGrad& dw);
// The same into a given dx, which may be the residual itself: how a residual stream is updated in place. dx_rows, if
// given, is dx once more in 8-bit floats with a scale per row.
void rms_norm_backward_into(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                            const Tensor& w, const Tensor& residual, const Tensor& dx, const MainGrad& dw,
                            const Operand& dx_rows = {});

// Norm of each query and key head over D, in place (Qwen3). qkv [T, (Hq + 2 Hkv) D]; wq, wk [D]; rstd [T, Hq + Hkv] if
// kept.
void qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& wq, const Tensor& wk, float eps,
             const Tensor& rstd = {});
// The same from a kept rstd: normalises `qkv` in place.
void recompute_qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& wq, const Tensor& wk,
                       const Tensor& rstd);
// dqkv (gradient of the normalised q, k; v passes) becomes the gradient of the q, k before the norm, in place.
void qk_norm_backward(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const Heads& heads,
                      const Tensor& wq, const Tensor& wk, const Tensor& rstd, const MainGrad& dwq, const MainGrad& dwk);

}  // namespace agoq::ops
