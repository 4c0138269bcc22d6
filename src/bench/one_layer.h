// A model of one layer with all that trains it.
#pragma once

#include "bench/workbench.h"

namespace agoq::bench {

struct OneLayer {
  // Weights as in the beginning of a run; gradients and moments random. `run_spec` may have any number of layers.
  OneLayer(const Workbench& b, const parallel::RunSpec& run_spec);
  OneLayer(const OneLayer&) = delete;
  OneLayer& operator=(const OneLayer&) = delete;

  std::vector<ops::AdamWState> states() const;  // of the layer's parameters

  const parallel::RunSpec run_spec;  // one layer, and ends of the model too small to count
  const model::LayerSpec spec;
  const parallel::Groups groups;  // this process alone
  const parallel::StageShard part;
  const parallel::ShardPlan shard_plan;
  model::Parameters params;
  parallel::Gradients grads;
  parallel::Optimizer optimizer;
  model::Model model;
};

}  // namespace agoq::bench
