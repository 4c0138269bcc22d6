// The norm of gradients as they are stored, decoded on the way: no fp32 copy of any.
#pragma once

#include <span>

#include "ops/gradient/gradient_sum.h"

namespace agoq::ops {

// squares[i] (fp32) = Σ g² of gradient i, not finite if any g is not. Squares are summed in double and in a fixed
// order.
void squared_norms(const Context& ctx, std::span<const GradientSum> grads, const Tensor& squares);

}  // namespace agoq::ops
