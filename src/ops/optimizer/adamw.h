// AdamW (Loshchilov & Hutter 2019) on 8-bit block-wise or fp32 moments, 8-bit or plain gradients and exact fp32
// masters, one pass over each block, for all parameters at once.
//
// What an update depends on beside settings (the norm of the gradients, how many updates there were, whether a gradient
// is broken) is decided and kept on the device: nothing waits for the host.
#pragma once

#include <cmath>
#include <span>

#include "ops/gradient/gradient_sum.h"
#include "ops/linear/weight.h"

namespace agoq::ops {

// Doubles, as in PyTorch: 1 - beta2 of a beta2 rounded to fp32 is off by up to 5e-5.
struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip_grad = 1.0;  // global norm; 0: no clipping
};

// One parameter [rows, cols], or some rows of it, with gradient and moments. `m` in Fp32 or Dyn8; `v` holds v in Fp32,
// sqrt(v) in Dyn8Unsigned.
struct AdamWState {
  Weight weight;
  GradientSum grad;
  codec::Quantized m, v;
  uint32_t tensor = 0;                  // logical tensor id, for the draws
  bool decay = true;                    // whether weight_decay applies
  codec::GlobalOffset global_offset{};  // of this part in the logical tensor, for the draws
};

// Lies in device memory, in a tensor of update_scalars_shape(). All bytes zero: no update yet.
struct UpdateScalars {
  int64_t updates = 0;      // applied so far; their count corrects the bias of the moments
  double grad_norm = 0;     // of all gradients, before clipping
  uint32_t non_finite = 0;  // 0: none; i + 1: gradient i is the first that is not finite, and the update is skipped
  float gradient_scale = 1, step_size = 0, root_correction = 1;  // p -= step_size · m / (√v / root_correction + eps)
};
inline Shape update_scalars_shape() {
  return {static_cast<int64_t>(sizeof(UpdateScalars))};  // of DType::U8
}

// squares [ranks, n] fp32, or [n]: squared norms of the gradients. Clips as torch.nn.utils.clip_grad_norm_ does it. In
// double, first the ranks of each column, in rank order, then the columns: the order is the same on every device.
void decide_update(const Context& ctx, const Tensor& squares, double lr, const AdamWConfig& config,
                   const Tensor& scalars);
// Applies what was decided with the same settings; changes nothing if that was to skip.
void adamw(const Context& ctx, std::span<const AdamWState> states, double lr, const AdamWConfig& config,
           const Tensor& scalars);

// The decision from the sum of squares, for host and device.
AGOQ_HD inline void decide(UpdateScalars& s, double sum, uint32_t non_finite, double lr, const AdamWConfig& config) {
  s.grad_norm = std::sqrt(sum);
  s.non_finite = non_finite;
  if (non_finite != 0) return;
  const double scale = config.clip_grad / (s.grad_norm + 1e-6);
  s.gradient_scale = config.clip_grad > 0 && scale < 1 ? static_cast<float>(scale) : 1.0f;
  const auto step = static_cast<double>(++s.updates);
  s.step_size = static_cast<float>(lr / (1 - std::pow(config.beta1, step)));
  s.root_correction = static_cast<float>(std::sqrt(1 - std::pow(config.beta2, step)));
}

// What all updates of a step multiply by, computed in double and rounded once. With h = √(1 - beta2) · g
//   m = beta1 · m + m_part · h        v = beta2 · v + h² = (root_beta2 · √v)² + h²
struct AdamWFactors {
  AdamWFactors(double lr, const AdamWConfig& c)
      : decay(static_cast<float>(1 - lr * c.weight_decay)),
        h(static_cast<float>(std::sqrt(1 - c.beta2))),
        beta1(static_cast<float>(c.beta1)),
        m_part(static_cast<float>((1 - c.beta1) / std::sqrt(1 - c.beta2))),
        beta2(static_cast<float>(c.beta2)),
        root_beta2(static_cast<float>(std::sqrt(c.beta2))),
        eps(static_cast<float>(c.eps)) {}
  float decay, h, beta1, m_part, beta2, root_beta2, eps;
};

}  // namespace agoq::ops
