// The CPU side of adamw.h: no checks; memory is there.
#pragma once

#include "ops/optimizer/adamw.h"

namespace agoq::ops::cpu {

void decide_update(const Tensor& squares, double lr, const AdamWConfig& config, UpdateScalars& scalars);
void adamw(const RandomKey& key, const AdamWState& state, const AdamWFactors& factors, const UpdateScalars& scalars);

}  // namespace agoq::ops::cpu
