#include "parallel/optimizer.h"

#include <algorithm>
#include <cmath>

#include "device/transfer.h"
#include "ops/gradient/gradient_norm.h"

namespace agoq::parallel {

Optimizer::Optimizer(Arena& arena, model::Parameters& params, Gradients& grads, const model::LayerSpec& spec,
                     const Precision& precision, const Groups& groups, const ShardPlan& plan,
                     std::vector<model::ParamId> of_model)
    : spec_(spec), groups_(groups), plan_(plan), params_(params), gradients_(grads), of_model_(std::move(of_model)) {
  for (const model::ParamId& id : params.ids())
    if (plan.rows(id.param, Role::Moments).count() > 0) updated_.push_back(id);
  const auto counts_here = [&](const model::ParamId& id) { return plan.answers_for(id.param, Role::Sum); };
  std::stable_partition(updated_.begin(), updated_.end(), counts_here);
  counted_ = static_cast<size_t>(std::count_if(updated_.begin(), updated_.end(), counts_here));
  for (const model::ParamId& id : updated_) {
    places_.resize(std::max(places_.size(), id.index() + 1), -1);
    places_[id.index()] = static_cast<int>(states_.size());
    states_.push_back(make_state(arena, id, precision));
  }
  squares_ =
      arena.allocate(Owner::NormWorkspace, DType::F32, {groups.world().size(), static_cast<int64_t>(of_model_.size())});
  scalars_ = arena.allocate(Owner::NormWorkspace, DType::U8, ops::update_scalars_shape());
}

ops::AdamWState Optimizer::make_state(Arena& arena, const model::ParamId& id, const Precision& precision) const {
  const model::ParamRow& row = spec_[id.param];
  const bool plain = row.one_dimensional();
  const model::Range rows = plan_.rows(id.param, Role::Moments);
  const auto moments = [&](codec::Codec codec) {
    return codec::allocate(arena, Owner::Moments, plain ? codec::Codec::Fp32 : codec, rows.count(), row.blocks());
  };
  const model::ExactRows& exact = params_.exact(id);
  ops::AdamWState state;
  state.weight =
      plain ? exact.weight : exact.weight.row_range(rows.begin - exact.rows.begin, rows.end - exact.rows.begin);
  state.grad = gradients_.sum(id);
  state.m = moments(precision.exp_avg);
  state.v = moments(precision.exp_avg_sq);
  state.tensor = id.tensor();
  state.decay = row.decay;
  state.global_offset = row.global_offset().from_row(rows.begin);
  return state;
}

const ops::AdamWState* Optimizer::state(const model::ParamId& id) const {
  const int place = id.index() < places_.size() ? places_[id.index()] : -1;
  return place < 0 ? nullptr : &states_[static_cast<size_t>(place)];
}

void Optimizer::step(const Context& ctx, double lr, const AdamWConfig& config) {
  gradients_.end_step(ctx);
  params_.begin_step();  // what was gathered is waited for before it changes
  std::vector<ops::GradientSum> sums;
  for (size_t i = 0; i < counted_; ++i) sums.push_back(states_[i].grad);
  const Tensor own = own_squares();
  ops::squared_norms(ctx, sums, own.view({own.count(), 1}).row_range(0, static_cast<int64_t>(counted_)));
  groups_.world().all_gather(ctx, own, squares_);
  ops::decide_update(ctx, squares_, lr, config, scalars_);
  ops::adamw(ctx, states_, lr, config, scalars_);
  gather_weights(ctx);
}

// Every rank's updated rows to the others of its group, in the order in which the next forward pass reads them.
void Optimizer::gather_weights(const Context& ctx) {
  for (const model::ParamId& id : params_.ids()) {
    const comm::ProcessGroup& group = plan_.group(id.param);
    if (group.alone() || !plan_.sharded(id.param, Role::Moments) || plan_.sharded(id.param, Role::Weight)) continue;
    const ops::Weight& weight = params_.at(id);
    const auto rows = [&](int rank) { return plan_.rows(id.param, Role::Moments, rank); };
    model::RowGather gather;
    for (const Tensor* part : {&weight.value, &weight.correction, &weight.master})
      if (*part) gather.add(group, part->row_range(rows(group.rank()).begin, rows(group.rank()).end), *part, rows);
    params_.expect(id, group.start(ctx, gather.sends, gather.receives));
  }
}

UpdateResult Optimizer::result(const Context& ctx) const {
  const ops::UpdateScalars s = scalars(ctx);
  UpdateResult result;
  result.grad_norm = s.grad_norm;
  result.skipped = s.non_finite != 0;
  if (result.skipped) result.non_finite = first_non_finite(ctx);
  return result;
}

// All ranks come here alike, and each knows of its own parameters, which may be rows of the same tensors.
std::string Optimizer::first_non_finite(const Context& ctx) const {
  std::vector<float> squares(static_cast<size_t>(squares_.cols()));
  download(ctx, own_squares(), squares.data());
  size_t first = of_model_.size();
  for (size_t i = 0; i < counted_; ++i) {
    if (std::isfinite(squares[i])) continue;
    const auto place = std::find(of_model_.begin(), of_model_.end(), updated_[i]);
    first = std::min(first, static_cast<size_t>(place - of_model_.begin()));
  }
  const std::vector<size_t> of_ranks = groups_.world().values(first);
  return model::logical_name(spec_, of_model_.at(*std::min_element(of_ranks.begin(), of_ranks.end())));
}

Tensor Optimizer::own_squares() const {
  return squares_.row_range(groups_.world().rank(), groups_.world().rank() + 1);
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
