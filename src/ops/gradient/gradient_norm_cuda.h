// The CUDA side of gradient_norm.h: no checks; memory is there.
#pragma once

#include <span>

#include "ops/gradient/gradient_sum.h"

namespace agoq::ops::cuda {

// A partial sum belongs to a fixed number of blocks, whatever the GPU, so that results and memory do not depend on it.
inline constexpr int64_t kNormTile = 256;
inline int64_t norm_tiles(const GradientSum& grad) {
  return (grad.first.rows * grad.first.row.blocks() + kNormTile - 1) / kNormTile;
}

// partial: a double for each tile of all gradients.
void squared_norms(const Context& ctx, std::span<const GradientSum> grads, double* partial, float* squares);

}  // namespace agoq::ops::cuda
