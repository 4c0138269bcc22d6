// CUDA kernels of ops/linear/weight.h and of the gather of ops/head/embedding.h.
#pragma once

#include "ops/linear/weight.h"

namespace agoq::ops::cuda {

// out [n, columns] = rows of the weight in the type of `out`: rows ids[0 .. n) - first, int32 on the GPU, with zeros
// for those that the weight has not; or without ids all of them in order. A vector is one row.
void read_rows(const Context& ctx, const Weight& w, const Tensor& ids, const Tensor& out, int64_t first = 0);

void fill_normal(const Context& ctx, const Weight& w, const NormalRows& rows);

}  // namespace agoq::ops::cuda
