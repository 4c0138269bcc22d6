// The CPU side of cross_entropy.h: no checks; memory is there.
#pragma once

#include "ops/cross_entropy.h"

namespace agoq::ops::cpu {

// nll [n] of rows of logits [n, V] fp32.
void cross_entropy(const Tensor& logits, const Targets& targets, const Tensor& nll);
// The same, and logits become scale · weight · (softmax - onehot), rounded to bf16 (but still held in fp32) if asked.
void cross_entropy_backward(const Tensor& logits, const Targets& targets, float scale, bool round, const Tensor& nll);

}  // namespace agoq::ops::cpu
