// The CPU side of embedding.h: no checks; memory is there.
#pragma once

#include "ops/head/embedding.h"

namespace agoq::ops::cpu {

// Row 0 of w and of the gradient is that of token `first`; tokens without a row give zeros, and take nothing.
void embedding(const Tensor& tokens, const Weight& w, int64_t first, const Tensor& out);

struct EmbeddingBackwardScratch {
  Tensor order;     // int64 [T]: row of the token · 2^32 + place
  Tensor segments;  // int32 [T + 1]: where in `order` each distinct token begins
  Tensor rows;      // thread_scratch of two rows of the gradient
};
void embedding_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, const MainGrad& grad, int64_t first,
                        const EmbeddingBackwardScratch& scratch);

}  // namespace agoq::ops::cpu
