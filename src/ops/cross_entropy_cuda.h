// The GPU side of cross_entropy.h: no checks; memory is there.
#pragma once

#include "ops/cross_entropy.h"

namespace agoq::ops::cuda {

// nll [n] of rows of logits [n, V] fp32.
void cross_entropy(const Context& ctx, const Tensor& logits, const Targets& targets, const Tensor& nll);
// The same, and dlogits [n, V], fp32 or bf16, = scale · weight · (softmax - onehot).
void cross_entropy_backward(const Context& ctx, const Tensor& logits, const Targets& targets, float scale,
                            const Tensor& nll, const Tensor& dlogits);

}  // namespace agoq::ops::cuda
