// LM head and cross-entropy in token chunks: logits [chunk, V] exist only for one chunk at a time. On a GPU the
// gradients of the logits, in the compute type, exist for many chunks, since few and large products are fast.
//
// Over the tensor group the vocabulary is divided in nearly equal parts: each rank has the logits of its rows of w, for
// all tokens, and the ranks tell each other of every token the largest logit, the sum of exponentials and the target's
// logit: at once for the loss alone, chunk by chunk for its gradient.
#pragma once

#include "ops/gradient/accumulate.h"

namespace agoq::ops {

struct Targets {
  Tensor tokens;   // [T] int32
  Tensor weights;  // [T] fp32, 0 where a token does not count
  // Where w has the rows of one rank of the tensor group: the token of its row 0, and how many all ranks have.
  int64_t first = 0, vocabulary = 0;
};

// nll [T] fp32: -log softmax(n·wᵀ)[target] of every token, unweighted (0 where the weight is 0), the same on all ranks.
// n [T, H], w [V / ranks, H].
void head_loss(const Context& ctx, const Tensor& n, const Tensor& w, const Targets& targets, const Tensor& nll);
// The same, and the gradient of scale · Σ weight · nll: returns dn [T, H], of which each rank has a partial sum; dw [V
// / ranks, H] accumulates: it is encoded once, after its parts have been summed in one fp32 buffer, or where there is
// but one part, without.
Tensor head_loss_backward(const Context& ctx, const Tensor& n, const Tensor& w, const Targets& targets, float scale,
                          const Tensor& nll, const MainGrad& dw);

}  // namespace agoq::ops
