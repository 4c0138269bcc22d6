// The sum of the losses of a micro-batch, kept where they are made, so that no step waits for it.
#pragma once

#include "device/context.h"

namespace agoq::ops {

// total [1] fp64 += Σ weights · values, both [T] fp32. Independent of the number of threads.
void add_weighted_sum(const Context& ctx, const Tensor& values, const Tensor& weights, const Tensor& total);

}  // namespace agoq::ops
