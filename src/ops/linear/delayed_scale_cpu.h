// CPU kernel of ops/linear/delayed_scale.h.
#pragma once

#include "ops/linear/delayed_scale.h"

namespace agoq::ops::cpu {

void make_scales(const Tensor& amaxes, bool remember, const DelayedScaling& how,
                 const std::array<DType, kScaleRoles>& formats, const ScaleHistory& history);

}  // namespace agoq::ops::cpu
