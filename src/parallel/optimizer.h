// AdamW over all parameters: norm pass, clipping and non-finite check without an fp32 copy of any gradient, then the
// update.
#pragma once

#include <string>
#include <vector>

#include "ops/adamw.h"
#include "parallel/gradients.h"

namespace agoq::parallel {

using ops::AdamWConfig;

struct UpdateResult {
  double grad_norm = 0;
  bool skipped = false;    // a gradient was not finite: nothing was changed
  std::string non_finite;  // the first such tensor
};

class Optimizer {
 public:
  Optimizer(Arena& arena, const model::Parameters& params, Gradients& grads, const model::LayerSpec& spec,
            const Precision& precision);

  // Starts the update on the device; nothing waits for it.
  void step(const Context& ctx, double lr, const AdamWConfig& config);
  // Of the last step; waits for it.
  UpdateResult result(const Context& ctx) const;
  // Applied so far, for bias correction; part of the checkpoint.
  int64_t updates(const Context& ctx) const { return scalars(ctx).updates; }
  void set_updates(const Context& ctx, int64_t updates);

  const ops::AdamWState& state(const model::ParamId& id) const { return states_[places_[id.tensor()]]; }

 private:
  ops::UpdateScalars scalars(const Context& ctx) const;

  const model::LayerSpec& spec_;
  std::vector<model::ParamId> ids_;
  Gradients& gradients_;
  std::vector<ops::AdamWState> states_;  // in the order of ids_
  std::vector<codec::Quantized> grads_;  // likewise
  std::vector<size_t> places_;           // in both, by ParamId::tensor()
  Tensor squares_;                       // [parameters] fp32: squared norm of each gradient
  Tensor scalars_;                       // ops::UpdateScalars
};

}  // namespace agoq::parallel
