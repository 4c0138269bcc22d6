// What the CPU kernels of norms share.
#pragma once

#include "ops/cpu.h"

namespace agoq::ops::cpu {

// body(row, sums of its slice, thread), the rows of each slice in order; then to = the sum of the slices, in order.
template <class Body>
void sum_slices(int64_t rows, const Tensor& partial, const Tensor& to, Body&& body) {
  const int64_t parts = partial.rows(), cols = partial.cols();
  parallel_for(parts, [&](int64_t s, int thread) {
    float* sums = partial.as<float>() + s * cols;
    std::fill_n(sums, cols, 0.0f);
    const ThreadRange range = part(rows, parts, s);
    for (int64_t t = range.begin; t < range.end; ++t) body(t, sums, thread);
  });
  float* total = to.as<float>();
  std::fill_n(total, cols, 0.0f);
  for (int64_t s = 0; s < parts; ++s) {
    const float* sums = partial.as<float>() + s * cols;
    for (int64_t i = 0; i < cols; ++i) total[i] += sums[i];
  }
}

}  // namespace agoq::ops::cpu
