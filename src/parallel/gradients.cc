#include "parallel/gradients.h"

#include <utility>

namespace agoq::parallel {

Gradients::Gradients(Arena& arena, const model::ModelConfig& config, const model::LayerSpec& spec,
                     const Precision& precision)
    : ids_(model::all_params(config, spec)), tied_embeddings_(config.tied_embeddings) {
  grads_.resize(model::tensor_ids(config));
  for (const model::ParamId& id : ids_) {
    const model::ParamRow& row = spec[id.param];
    const codec::Codec codec = row.one_dimensional() ? codec::Codec::Fp32 : precision.main_grads;
    grads_[id.tensor()] = {codec::allocate(arena, "main gradients", codec, row.rows, row.blocks()), id.tensor(),
                           precision.stochastic};
  }
}

void Gradients::begin_step(const Context& ctx) {
  for (const model::ParamId& id : ids_) {
    ops::MainGrad& grad = grads_[id.tensor()];
    // A tied embedding is written whole by the head, which comes first.
    grad.fresh = id.param != model::Param::Embedding || tied_embeddings_;
    if (!grad.fresh) codec::zero(ctx, grad.data);
  }
}

ops::MainGrad Gradients::acquire(const model::ParamId& id) {
  ops::MainGrad grad = grads_[id.tensor()];
  grads_[id.tensor()].fresh = false;
  return grad;
}

void Gradients::end_step(const Context& ctx) {
  for (const model::ParamId& id : ids_) ops::zero_if_fresh(ctx, acquire(id));
}

}  // namespace agoq::parallel
