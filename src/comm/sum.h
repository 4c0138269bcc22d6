// Sums over ranks.
#pragma once

#include <span>

#include "device/context.h"

namespace agoq::comm {

// out [n] = Σ parts[i] [n] in the order given: in fp32 for fp32 and bf16 (rounded once), in fp64 for fp64. `out` may be
// one of the parts.
void sum(const Context& ctx, std::span<const Tensor> parts, const Tensor& out);

}  // namespace agoq::comm
