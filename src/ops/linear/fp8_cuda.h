// GPU kernels of ops/linear/fp8.h.
#pragma once

#include "device/context.h"
#include "ops/linear/operand.h"

namespace agoq::ops::cuda {

// x is [rows, k] if k is its major, else [k, rows]. Reads x twice: for the scales, then for the codes.
void to_fp8(const Context& ctx, const Tensor& x, Major x_major, const Operand& out);

}  // namespace agoq::ops::cuda
