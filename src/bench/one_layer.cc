#include "bench/one_layer.h"

namespace agoq::bench {
namespace {

parallel::Job one_layer_of(parallel::Job job) {
  job.model.layers = 1;
  job.model.vocab_size = 16;
  job.recipe.layers.resize(1);
  return job;
}

}  // namespace

OneLayer::OneLayer(const Workbench& b, const parallel::Job& given)
    : job(one_layer_of(given)),
      spec(job.model),
      part(job.model, spec, job.parallelism),
      params(b.arena(), job.model, spec, {part.ids, job.precision.master, job.precision.compute, {}}),
      grads(b.arena(), spec, part, job.precision, job.parallelism, groups),
      optimizer(b.arena(), params, grads, spec, job.precision, groups, part.ids),
      model(b.arena(), job.model, spec, job.sequence_length) {
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
