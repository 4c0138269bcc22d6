// AdamW over all parameters: norm pass, clipping and non-finite check without an fp32 copy of any gradient, then the
// update. With ZeRO-1 each rank of a reduction group updates its slice of rows, for which alone it keeps moments, and
// the weights are gathered.
#pragma once

#include <string>
#include <vector>

#include "ops/optimizer/adamw.h"
#include "parallel/gradients.h"

namespace agoq::parallel {

using ops::AdamWConfig;

struct UpdateResult {
  double grad_norm = 0;
  bool skipped = false;    // a gradient was not finite: nothing was changed, on any rank
  std::string non_finite;  // the first such tensor of the model
};

class Optimizer {
 public:
  // `of_model`: all parameters of the model, those of other stages too, in the order of forward.
  Optimizer(Arena& arena, model::Parameters& params, Gradients& grads, const model::LayerSpec& spec,
            const Precision& precision, const Groups& groups, const ShardPlan& plan,
            std::vector<model::ParamId> of_model);

  // Starts the update on the device, and the exchange of what was updated; nothing waits for it.
  void step(const Context& ctx, double lr, const AdamWConfig& config);
  // Of the last step; waits for it. The same on all ranks.
  UpdateResult result(const Context& ctx) const;
  // Applied so far, for bias correction; part of the checkpoint.
  int64_t updates(const Context& ctx) const { return scalars(ctx).updates; }
  void set_updates(const Context& ctx, int64_t updates);

  // The moments of a parameter's rows that this process updates; null if it updates none.
  const ops::AdamWState* state(const model::ParamId& id) const;

 private:
  ops::AdamWState make_state(Arena& arena, const model::ParamId& id, const Precision& precision) const;
  void gather_weights(const Context& ctx);
  Tensor own_squares() const;
  std::string first_non_finite(const Context& ctx) const;
  ops::UpdateScalars scalars(const Context& ctx) const;

  const model::LayerSpec& spec_;
  const Groups& groups_;
  const ShardPlan& plan_;
  model::Parameters& params_;
  Gradients& gradients_;
  std::vector<model::ParamId> of_model_;
  // What this process updates; first what counts in the norm here.
  std::vector<model::ParamId> updated_;
  std::vector<ops::AdamWState> states_;
  size_t counted_ = 0;
  std::vector<int> places_;  // in both, by ParamId::tensor(); -1: none
  Tensor squares_;           // [ranks, parameters of the model] fp32: squared norms of what counts on each rank
  Tensor scalars_;           // ops::UpdateScalars
};

}  // namespace agoq::parallel
