// AdamW over all parameters: norm pass, clipping and non-finite check without an fp32 copy of any gradient, then the
// update.
#pragma once

#include <string>
#include <vector>

#include "ops/adamw.h"
#include "parallel/gradients.h"

namespace agoq::parallel {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip_grad = 1.0;  // global norm; 0: no clipping
};

struct UpdateResult {
  double grad_norm = 0;
  bool skipped = false;    // a gradient was not finite: nothing was changed
  std::string non_finite;  // the first such tensor
};

class Optimizer {
 public:
  Optimizer(Arena& arena, const model::Parameters& params, const Gradients& grads, const model::LayerSpec& spec,
            const Precision& precision);

  UpdateResult step(const Context& ctx, double lr, const AdamWConfig& config);
  const ops::AdamWState& state(const model::ParamId& id) const { return states_[id.tensor()]; }

  int64_t updates = 0;  // applied so far, for bias correction; part of the checkpoint

 private:
  double global_norm(const Context& ctx, std::string& non_finite) const;

  const model::LayerSpec& spec_;
  std::vector<model::ParamId> ids_;
  std::vector<ops::AdamWState> states_;  // by ParamId::tensor()
  Tensor squares_;                       // [parameters] fp32: squared norm of each gradient
};

}  // namespace agoq::parallel
