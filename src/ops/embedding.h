// Token embedding.
#pragma once

#include "ops/accumulate.h"
#include "ops/weight.h"

namespace agoq::ops {

// tokens [T] int32, w [V, H] in its held form -> [T, H] in the compute type. Token ids were checked when the batch was
// made.
Tensor embedding(const Context& ctx, const Tensor& tokens, const Weight& w);
// grad rows of the tokens += dx, by a stable sort by token and a segment sum; only touched rows are read and written,
// so the gradient must not be fresh.
void embedding_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, const MainGrad& grad);

}  // namespace agoq::ops
