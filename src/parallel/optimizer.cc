#include "parallel/optimizer.h"

#include <algorithm>
#include <cmath>

namespace agoq::parallel {

Optimizer::Optimizer(Arena& arena, const model::Parameters& params, const Gradients& grads,
                     const model::LayerSpec& spec, const Precision& precision)
    : spec_(spec), ids_(params.ids()) {
  for (const model::ParamId& id : ids_) {
    const model::ParamRow& row = spec[id.param];
    const bool plain = row.one_dimensional();
    ops::AdamWState state;
    state.weight = params.at(id);
    state.grad = grads.grad(id).data;
    state.m = codec::allocate(arena, "moments", plain ? codec::Codec::Fp32 : precision.exp_avg, row.rows, row.blocks());
    state.v =
        codec::allocate(arena, "moments", plain ? codec::Codec::Fp32 : precision.exp_avg_sq, row.rows, row.blocks());
    state.tensor = id.tensor();
    states_.resize(std::max(states_.size(), size_t{id.tensor()} + 1));
    states_[id.tensor()] = state;
  }
  squares_ = arena.allocate("workspace of the norm", DType::F32, {static_cast<int64_t>(ids_.size())});
}

UpdateResult Optimizer::step(const Context& ctx, double lr, const AdamWConfig& config) {
  UpdateResult result;
  result.grad_norm = global_norm(ctx, result.non_finite);
  result.skipped = !result.non_finite.empty();
  if (result.skipped) return result;
  ++updates;
  ops::AdamWStep step{lr, config.beta1, config.beta2, config.eps, 0, 1, updates};
  // As torch.nn.utils.clip_grad_norm_ does it.
  if (config.clip_grad > 0)
    step.gradient_scale = static_cast<float>(std::min(1.0, config.clip_grad / (result.grad_norm + 1e-6)));
  for (const model::ParamId& id : ids_) {
    step.weight_decay = spec_[id.param].decay ? config.weight_decay : 0.0;
    ops::adamw(ctx, states_[id.tensor()], step);
  }
  return result;
}

double Optimizer::global_norm(const Context& ctx, std::string& non_finite) const {
  for (size_t i = 0; i < ids_.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i);
    ops::squared_norm(ctx, states_[ids_[i].tensor()].grad,
                      squares_.view({squares_.count(), 1}).row_range(row, row + 1));
  }
  if (ctx.meta()) return 0;
  double sum = 0;
  const float* squares = squares_.as<float>();
  for (size_t i = 0; i < ids_.size(); ++i) {
    sum += squares[i];
    if (!std::isfinite(squares[i]) && non_finite.empty()) non_finite = model::logical_name(spec_, ids_[i]);
  }
  return std::sqrt(sum);
}

}  // namespace agoq::parallel
