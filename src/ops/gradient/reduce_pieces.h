// Gradients that ranks have exchanged: their sum once more in the gradient's format, in the all-reduce form and for
// ZeRO-2.
#pragma once

#include "ops/gradient/gradient_sum.h"

namespace agoq::ops {

// out [rows, cols] = the sum, encoded once, in the codec and blocks of the pieces, or as it is in fp32. May be one of
// the pieces.
void sum_pieces(const Context& ctx, const GradientSum& sum, const codec::Quantized& out,
                const codec::Rounding& rounding);

// out += the sum: once decoded, added behind the pieces in fp32, and encoded again.
void add_pieces(const Context& ctx, const GradientSum& sum, const codec::Quantized& out,
                const codec::Rounding& rounding);

}  // namespace agoq::ops
