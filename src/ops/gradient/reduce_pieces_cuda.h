// The CUDA side of reduce_pieces.h: no checks; memory is there. `add`: to what `out` holds.
#pragma once

#include "ops/gradient/gradient_sum.h"

namespace agoq::ops::cuda {

void sum_pieces(const Context& ctx, const GradientSum& sum, const codec::Quantized& out,
                const codec::Rounding& rounding, bool add);

}  // namespace agoq::ops::cuda
