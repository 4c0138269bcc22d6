#include "parallel/micro_batch_gradients.h"

namespace agoq::parallel {

using model::Param;
using model::ParamId;

MicroBatchGradients::MicroBatchGradients(Arena& arena, const model::LayerSpec& spec, const ShardPlan& plan,
                                         const std::vector<ParamId>& ids, codec::Codec wire)
    : spec_(spec), plan_(plan), wire_(wire) {
  const auto bytes = [&](Param param) {
    const bool at_once = plan.sharded(param, Role::Gradient) && !plan.group(param).alone();
    return at_once ? codec::bytes_in_view(wire, padded_rows(param), spec[param].blocks()) : 0;
  };
  buffer_ = model::LayerBuffer(arena, Owner::Communication, spec, ids, bytes);
}

int64_t MicroBatchGradients::padded_rows(Param param) const {
  return plan_.slice(param) * plan_.group(param).size();
}

codec::Quantized MicroBatchGradients::take(const Context& ctx, GradientExchange& exchange, const ParamId& id) {
  if (!making_ || set_ != model::set_of(id)) begin(ctx, exchange, model::set_of(id));
  return taken(id);
}

codec::Quantized MicroBatchGradients::taken(const ParamId& id) const {
  return codec::view_in(buffer_.of(id.param, half_), wire_, padded_rows(id.param), spec_[id.param].blocks());
}

void MicroBatchGradients::begin(const Context& ctx, GradientExchange& exchange, const model::MatrixSet& set) {
  set_ = set;
  making_ = true;
  half_ = 1 - half_;
  for (size_t half = 0; half < under_way_.size(); ++half) {
    if (half != half_ && !buffer_.wide(set)) continue;
    for (const auto& exchanged : under_way_[half])
      expose(ctx, Exposed::Gradients, [&] { exchange.wait_for(ctx, *exchanged); });
    under_way_[half].clear();
  }
}

void MicroBatchGradients::sent(const ParamId& id, const std::shared_ptr<const Exchanged>& exchanged) {
  require(set_ == model::set_of(id), "a gradient was sent that is not being made");
  making_ = false;
  for (size_t half = 0; half < under_way_.size(); ++half)
    if (half == half_ || buffer_.wide(set_)) under_way_[half].push_back(exchanged);
}

}  // namespace agoq::parallel
