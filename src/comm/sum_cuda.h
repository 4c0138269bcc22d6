// The CUDA side of sum.h: no checks; memory is there.
#pragma once

#include "comm/sum.h"

namespace agoq::comm::cuda {

void sum(const Context& ctx, const SumParts& parts, const Tensor& out);

}  // namespace agoq::comm::cuda
