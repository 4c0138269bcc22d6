// The CUDA side of adamw.h: no checks.
#pragma once

#include "ops/optimizer/adamw.h"

namespace agoq::ops::cuda {

void decide_update(const Context& ctx, const Tensor& squares, double lr, const AdamWConfig& config,
                   UpdateScalars* scalars);
void adamw(const Context& ctx, std::span<const AdamWState> states, double lr, const AdamWConfig& config,
           const UpdateScalars* scalars);

}  // namespace agoq::ops::cuda
