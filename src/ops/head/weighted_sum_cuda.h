// The CUDA side of weighted_sum.h: no checks.
#pragma once

#include "device/context.h"

namespace agoq::ops::cuda {

void add_weighted_sum(const Context& ctx, const Tensor& values, const Tensor& weights, const Tensor& total);

}  // namespace agoq::ops::cuda
