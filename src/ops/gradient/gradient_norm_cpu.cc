#include "ops/gradient/gradient_norm_cpu.h"

#include "ops/cpu.h"

namespace agoq::ops::cpu {

using codec::kBlock;

// Squares are summed in order within a row, then over the rows.
float squared_norm(const GradientSum& grad, double* rows) {
  const int64_t blocks = grad.first.row.blocks();
  parallel_for(grad.first.rows, [&](int64_t r, int) {
    constexpr int kLanes = 16;
    double lanes[kLanes] = {};
    for (int64_t block = 0; block < blocks; ++block) {
      alignas(64) float g[kBlock] = {};
      decode_block(grad, r, block, g);
      for (int i = 0; i < kBlock; i += kLanes)
        for (int l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(g[i + l]) * static_cast<double>(g[i + l]);
    }
    rows[r] = 0;
    for (double lane : lanes) rows[r] += lane;
  });
  double total = 0;
  for (int64_t r = 0; r < grad.first.rows; ++r) total += rows[r];
  return static_cast<float>(total);
}

}  // namespace agoq::ops::cpu
