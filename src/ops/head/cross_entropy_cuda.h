// The GPU side of cross_entropy.h: no checks; memory is there.
#pragma once

#include "ops/head/cross_entropy.h"

namespace agoq::ops::cuda {

// nll [n] of rows of logits [n, V] fp32.
void cross_entropy(const Context& ctx, const Tensor& logits, const Targets& targets, const Tensor& nll);
// The same, and dlogits [n, V], fp32 or bf16, = scale · weight · (softmax - onehot).
void cross_entropy_backward(const Context& ctx, const Tensor& logits, const Targets& targets, float scale,
                            const Tensor& nll, const Tensor& dlogits);

// Where the vocabulary is divided over ranks: sums [n, kRowSums] (row_sums.h) of this rank's logits [n, V / ranks].
void sum_exponentials(const Context& ctx, const Tensor& logits, const Targets& targets, const Tensor& sums);
// nll [n] from the sums [ranks, n, kRowSums] of all ranks; those of the first become those of the undivided rows.
void cross_entropy_of_sums(const Context& ctx, const Tensor& sums, const Targets& targets, const Tensor& nll);
// The gradient of this rank's logits, as above, from what cross_entropy_of_sums leaves.
void cross_entropy_gradient(const Context& ctx, const Tensor& sums, const Tensor& logits, const Targets& targets,
                            float scale, const Tensor& dlogits);

}  // namespace agoq::ops::cuda
