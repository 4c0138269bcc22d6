// The CPU side of adamw.h: no checks; memory is there.
#pragma once

#include "ops/adamw.h"

namespace agoq::ops::cpu {

void adamw(const RandomKey& key, const AdamWState& state, const AdamWStep& step);
// rows: room for a double per row of the gradient.
void squared_norm(const codec::Quantized& grad, double* rows, float* out);

}  // namespace agoq::ops::cpu
