// CPU kernel of ops/linear/fp8.h.
#pragma once

#include "ops/linear/operand.h"

namespace agoq::ops::cpu {

// Its scratch, fp32: the largest magnitude of each row of the operand within each range of k that has scales of its
// own.
Shape row_amax_shape(const Operand& out);

// x is [rows, k] if k is its major, else [k, rows].
void to_fp8(const Tensor& x, Major x_major, const Operand& out, const Tensor& row_amax);

}  // namespace agoq::ops::cpu
