// The CPU side of embedding.h: no checks; memory is there.
#pragma once

#include "ops/embedding.h"

namespace agoq::ops::cpu {

void embedding(const Tensor& tokens, const Weight& w, const Tensor& out);

struct EmbeddingBackwardRoom {
  Tensor order;     // int64 [T]: token · 2^32 + place
  Tensor segments;  // int32 [T + 1]: where in `order` each distinct token begins
  Tensor rows;      // thread_scratch of two rows of the gradient
};
void embedding_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, const MainGrad& grad,
                        const EmbeddingBackwardRoom& room);

}  // namespace agoq::ops::cpu
