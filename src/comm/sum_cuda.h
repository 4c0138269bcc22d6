// The CUDA side of sum.h: no checks; memory is there.
#pragma once

#include <span>

#include "device/context.h"

namespace agoq::comm::cuda {

void sum(const Context& ctx, std::span<const Tensor> parts, const Tensor& out);

}  // namespace agoq::comm::cuda
