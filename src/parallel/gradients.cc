#include "parallel/gradients.h"

namespace agoq::parallel {

Gradients::Gradients(Arena& arena, const model::ModelConfig& config, const model::LayerSpec& spec,
                     const Precision& precision)
    : ids_(model::all_params(config, spec)) {
  grads_.resize(model::tensor_ids(config));
  for (const model::ParamId& id : ids_) {
    const model::ParamRow& row = spec[id.param];
    const codec::Codec codec = row.one_dimensional() ? codec::Codec::Fp32 : precision.main_grads;
    grads_[id.tensor()] = {codec::allocate(arena, "main gradients", codec, row.rows, row.blocks()), id.tensor(),
                           precision.stochastic};
  }
}

void Gradients::zero(const Context& ctx) const {
  for (const model::ParamId& id : ids_) codec::zero(ctx, grads_[id.tensor()].data);
}

}  // namespace agoq::parallel
