#include "parallel/optimizer.h"

#include <algorithm>

#include "device/transfer.h"
#include "ops/gradient_norm.h"

namespace agoq::parallel {

Optimizer::Optimizer(Arena& arena, const model::Parameters& params, Gradients& grads, const model::LayerSpec& spec,
                     const Precision& precision)
    : spec_(spec), ids_(params.ids()), gradients_(grads) {
  for (const model::ParamId& id : ids_) {
    const model::ParamRow& row = spec[id.param];
    const bool plain = row.one_dimensional();
    ops::AdamWState state;
    state.weight = params.at(id);
    state.grad = grads.data(id);
    state.m = codec::allocate(arena, "moments", plain ? codec::Codec::Fp32 : precision.exp_avg, row.rows, row.blocks());
    state.v =
        codec::allocate(arena, "moments", plain ? codec::Codec::Fp32 : precision.exp_avg_sq, row.rows, row.blocks());
    state.tensor = id.tensor();
    state.decay = row.decay;
    places_.resize(std::max(places_.size(), size_t{id.tensor()} + 1));
    places_[id.tensor()] = states_.size();
    states_.push_back(state);
    grads_.push_back(state.grad);
  }
  const char* owner = "workspace of the norm";
  squares_ = arena.allocate(owner, DType::F32, {static_cast<int64_t>(ids_.size())});
  scalars_ = arena.allocate(owner, DType::U8, ops::update_scalars_shape());
}

void Optimizer::step(const Context& ctx, double lr, const AdamWConfig& config) {
  gradients_.end_step(ctx);
  ops::squared_norms(ctx, grads_, squares_);
  ops::decide_update(ctx, squares_, lr, config, scalars_);
  ops::adamw(ctx, states_, lr, config, scalars_);
}

UpdateResult Optimizer::result(const Context& ctx) const {
  const ops::UpdateScalars s = scalars(ctx);
  UpdateResult result;
  result.grad_norm = s.grad_norm;
  result.skipped = s.non_finite != 0;
  if (result.skipped) result.non_finite = model::logical_name(spec_, ids_[s.non_finite - 1]);
  return result;
}

void Optimizer::set_updates(const Context& ctx, int64_t updates) {
  ops::UpdateScalars s;
  s.updates = updates;
  upload(ctx, &s, scalars_);
}

ops::UpdateScalars Optimizer::scalars(const Context& ctx) const {
  ops::UpdateScalars s;
  download(ctx, scalars_, &s);
  return s;
}

}  // namespace agoq::parallel
