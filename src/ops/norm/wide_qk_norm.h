// RMSNorm of q over all of its heads together, and of k over all of its, in place (OLMo 2; RMSNorm: rms_norm.h).
//
// Over the tensor group, whose ranks have some of the heads each, two sums of each token are added up, fp32: of squares
// in forward, of dn·w·x in backward. Everyone of the group must call.
#pragma once

#include "codec/codec.h"
#include "ops/gradient/accumulate.h"
#include "ops/heads.h"

namespace agoq::ops {

// qkv [T, (Hq + 2 Hkv) D] of the rank's heads, wq [Hq D] and wk [Hkv D] likewise; rstd [T, 2] of q and k, if kept.
void wide_qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& wq, const Tensor& wk,
                  float eps, const Tensor& rstd = {});
// The same from a kept rstd: normalises `qkv` in place. Nothing travels.
void recompute_wide_qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& wq,
                            const Tensor& wk, const Tensor& rstd);
// dqkv (gradient of the normalised q, k; v passes) becomes the gradient of the q, k before the norm, in place.
void wide_qk_norm_backward(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const Heads& heads,
                           const Tensor& wq, const Tensor& wk, const Tensor& rstd, const MainGrad& dwq,
                           const MainGrad& dwk);

}  // namespace agoq::ops
