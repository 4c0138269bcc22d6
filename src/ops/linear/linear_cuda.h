// GPU kernel of ops/linear/linear.h: cuBLASLt.
#pragma once

#include "device/context.h"
#include "ops/linear/product.h"

namespace agoq::ops::cuda {

// Bytes of its workspace.
inline constexpr int64_t kGemmWorkspace = int64_t{32} << 20;

// a and b of one type: bf16 into bf16 or fp32, fp32 into fp32 (without TF32); or 8-bit floats, not both e5m2, whose
// major is k. bias and residual of c's type; not both beta and residual. Rounds once. The same bits every time with the
// same algorithm (ops/linear/gemm_algorithms.h).
void multiply(const Context& ctx, const Product& p, const Tensor& workspace);

}  // namespace agoq::ops::cuda
