// The CPU side of reduce_pieces.h: no checks; memory is there. `add`: to what `out` holds.
#pragma once

#include "ops/gradient/gradient_sum.h"

namespace agoq::ops::cpu {

void sum_pieces(const GradientSum& sum, const codec::Quantized& out, const codec::Rounding& rounding, bool add);

}  // namespace agoq::ops::cpu
