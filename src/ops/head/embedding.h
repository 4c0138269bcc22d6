// Token embedding. Over the tensor group the vocabulary is divided: w and its gradient hold the rows of tokens `first`
// and following, and ranks have T / ranks rows of the residual stream each.
#pragma once

#include "ops/gradient/accumulate.h"
#include "ops/linear/weight.h"

namespace agoq::ops {

// tokens [T] int32, w [V / ranks, H] in its held form -> [T / ranks, H] in the compute type. Token ids were checked
// when the batch was made.
Tensor embedding(const Context& ctx, const Tensor& tokens, const Weight& w, int64_t first = 0);
// The same into a given tensor.
void embedding_into(const Context& ctx, const Tensor& tokens, const Weight& w, const Tensor& out, int64_t first = 0);
// grad rows of the tokens += dx [T / ranks, H], by a stable sort by token and a segment sum; only touched rows are read
// and written, so the gradient must not be fresh.
void embedding_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, const MainGrad& grad,
                        int64_t first = 0);

}  // namespace agoq::ops
