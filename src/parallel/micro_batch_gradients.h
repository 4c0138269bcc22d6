// Where a micro-batch's gradients lie on their way to the ranks that keep their sums (ZeRO-2).
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "model/layer_buffer.h"
#include "parallel/gradient_exchange.h"
#include "parallel/shard_plan.h"

namespace agoq::parallel {

class MicroBatchGradients {
 public:
  // Of those of `ids` whose gradients are summed at once, which may be none.
  MicroBatchGradients(Arena& arena, const model::LayerSpec& spec, const ShardPlan& plan,
                      const std::vector<model::ParamId>& ids, codec::Codec wire);
  bool holds(model::Param param) const { return buffer_.has(param); }

  // All rows of a gradient, padded to equal slices. All of a layer are taken before the first is sent. Waits until
  // what lay there has gone.
  codec::Quantized take(const Context& ctx, GradientExchange& exchange, const model::ParamId& id);
  codec::Quantized taken(const model::ParamId& id) const;
  // It is under way, and taken no more.
  void sent(const model::ParamId& id, const std::shared_ptr<const Exchanged>& exchanged);

 private:
  void begin(const Context& ctx, GradientExchange& exchange, const model::MatrixSet& set);
  int64_t padded_rows(model::Param param) const;

  const model::LayerSpec& spec_;
  const ShardPlan& plan_;
  codec::Codec wire_;
  model::LayerBuffer buffer_;
  model::MatrixSet set_;                                                    // that is being made
  bool making_ = false;                                                     // until one of it is sent
  size_t half_ = 1;                                                         // of the buffer, where it lies
  std::array<std::vector<std::shared_ptr<const Exchanged>>, 2> under_way_;  // of each half
};

}  // namespace agoq::parallel
