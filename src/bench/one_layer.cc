#include "bench/one_layer.h"

namespace agoq::bench {
namespace {

parallel::RunSpec one_layer_of(parallel::RunSpec run_spec) {
  const auto& fp8 = run_spec.precision.fp8.recipe;
  require(!fp8 || !fp8->delayed,
          "--fp8-recipe delayed takes its scales from earlier steps, which a layer alone has not: bench step");
  run_spec.model.layers = 1;
  run_spec.model.vocab_size = 16;
  run_spec.recipe.layers.resize(1);
  return run_spec;
}

}  // namespace

OneLayer::OneLayer(const Workbench& b, const parallel::RunSpec& given)
    : run_spec(one_layer_of(given)),
      spec(run_spec.model),
      part(run_spec.model, spec, run_spec.parallelism),
      shard_plan(spec, groups, run_spec.parallelism.sharding, run_spec.precision.compute),
      params(b.arena(), run_spec.model, spec,
             {part.ids,
              run_spec.precision.master,
              run_spec.precision.compute,
              {},
              {},
              run_spec.precision.fp8.weights(run_spec.model.layers)}),
      grads(b.arena(), spec, part, run_spec.precision, run_spec.parallelism, shard_plan),
      optimizer(b.arena(), params, grads, spec, run_spec.precision, groups, shard_plan, part.ids),
      model(b.arena(), run_spec.model, spec, run_spec.sequence_length, run_spec.recipe.recompute,
            {run_spec.precision.fp8.recipe, 0, 0}) {
  if (!b.ctx().meta()) params.initialize(b.ctx(), 1);
  for (const ops::AdamWState& state : states()) {
    b.fill(state.grad.first);
    b.fill(state.m);
    if (codec::has_scales(state.v.codec)) b.fill(state.v);  // a root, whose sign is dropped; in fp32 it stays zero
  }
}

std::vector<ops::AdamWState> OneLayer::states() const {
  std::vector<ops::AdamWState> states;
  for (const model::ParamId& id : params.ids())
    if (model::in_layer(id.param)) states.push_back(*optimizer.state(id));
  return states;
}

}  // namespace agoq::bench
