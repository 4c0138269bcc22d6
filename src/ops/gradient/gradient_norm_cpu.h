// The CPU side of gradient_norm.h: no checks; memory is there.
#pragma once

#include "ops/gradient/gradient_sum.h"

namespace agoq::ops::cpu {

// rows: space for a double per row of the gradient.
float squared_norm(const GradientSum& grad, double* rows);

}  // namespace agoq::ops::cpu
