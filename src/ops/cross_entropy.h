// LM head and cross-entropy in token chunks: logits [chunk, V] exist only for one chunk at a time. On a GPU the
// gradients of the logits, in the compute type, exist for many chunks, since few and large products are fast.
#pragma once

#include "ops/accumulate.h"

namespace agoq::ops {

struct Targets {
  Tensor tokens;   // [T] int32
  Tensor weights;  // [T] fp32, 0 where a token does not count
};

// nll [T] fp32: -log softmax(n·wᵀ)[target] of every token, unweighted (0 where the weight is 0). n [T, H], w [V, H].
void head_loss(const Context& ctx, const Tensor& n, const Tensor& w, const Targets& targets, const Tensor& nll);
// The same, and the gradient of scale · Σ weight · nll: returns dn [T, H]; dw [V, H] accumulates: it is encoded once,
// after its parts have been summed in one fp32 buffer, or where there is but one part, without.
Tensor head_loss_backward(const Context& ctx, const Tensor& n, const Tensor& w, const Targets& targets, float scale,
                          const Tensor& nll, const MainGrad& dw);

}  // namespace agoq::ops
