// AdamW (Loshchilov & Hutter 2019) on 8-bit block-wise or fp32 moments, 8-bit or plain gradients and exact fp32
// masters, one pass over each block; and the norm of a gradient, decoded block by block.
#pragma once

#include "codec/codec.h"
#include "ops/weight.h"

namespace agoq::ops {

// Hyperparameters are doubles, as in PyTorch: 1 - beta2 of a beta2 rounded to fp32 is off by up to 5e-5.
struct AdamWStep {
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  float gradient_scale = 1;  // clipping: min(1, max_norm / norm)
  int64_t step = 1;          // 1-based, for bias correction
};

// One parameter [rows, cols] with its gradient and moments. `m` in Fp32 or Dyn8; `v` holds v in Fp32, sqrt(v) in
// Dyn8Unsigned.
struct AdamWState {
  Weight weight;
  codec::Quantized grad, m, v;
  uint32_t tensor = 0;  // logical tensor id, for the draws
};

void adamw(const Context& ctx, const AdamWState& state, const AdamWStep& step);
// out[0] (fp32) = Σ g², not finite if any g is not. Independent of the number of threads.
void squared_norm(const Context& ctx, const codec::Quantized& grad, const Tensor& out);

}  // namespace agoq::ops
