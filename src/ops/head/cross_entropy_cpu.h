// The CPU side of cross_entropy.h: no checks; memory is there.
#pragma once

#include "ops/head/cross_entropy.h"

namespace agoq::ops::cpu {

// nll [n] of rows of logits [n, V] fp32.
void cross_entropy(const Tensor& logits, const Targets& targets, const Tensor& nll);
// The same, and logits become scale · weight · (softmax - onehot), rounded to bf16 (but still held in fp32) if asked.
void cross_entropy_backward(const Tensor& logits, const Targets& targets, float scale, bool round, const Tensor& nll);

// Where the vocabulary is divided over ranks: sums [n, kRowSums] (row_sums.h) of this rank's logits [n, V / ranks],
// which become exp(x - the largest of their row) if asked.
void sum_exponentials(const Tensor& logits, const Targets& targets, bool exponentiate, const Tensor& sums);
// nll [n] from the sums [ranks, n, kRowSums] of all ranks.
void cross_entropy_of_sums(const Tensor& sums, const Targets& targets, const Tensor& nll);
// Exponentials of this rank -> the gradient of its logits.
void cross_entropy_gradient(const Tensor& sums, int rank, const Targets& targets, float scale, bool round,
                            const Tensor& exponentials);

}  // namespace agoq::ops::cpu
