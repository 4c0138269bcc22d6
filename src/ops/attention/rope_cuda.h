// CUDA kernel of ops/attention/rope.h.
#pragma once

#include "ops/attention/rope.h"

namespace agoq::ops::cuda {

// Rotates `heads` heads of `dim` at the beginning of each row by its position; sign -1 rotates back.
void rotate(const Context& ctx, const Tensor& qkv, int64_t heads, int64_t dim, const Tensor& table, float sign);

}  // namespace agoq::ops::cuda
