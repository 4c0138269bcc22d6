// Main gradients of all parameters, in the chosen format; 1-D parameters keep fp32.
#pragma once

#include <vector>

#include "model/model.h"
#include "parallel/precision.h"

namespace agoq::parallel {

class Gradients : public model::GradientSource {
 public:
  Gradients(Arena& arena, const model::ModelConfig& config, const model::LayerSpec& spec, const Precision& precision);

  // From here on all sums are zero. Memory is cleared only where a backward pass may leave parts alone (the rows of the
  // embedding without a token); the others are fresh, and the first contribution of the step overwrites them.
  void begin_step(const Context& ctx);
  // Fresh the first time in a step.
  ops::MainGrad acquire(const model::ParamId& id) override;
  // Clears what stayed fresh because nothing contributed to it: afterwards `data` holds every sum.
  void end_step(const Context& ctx);

  const codec::Quantized& data(const model::ParamId& id) const { return grads_[id.tensor()].data; }

 private:
  std::vector<model::ParamId> ids_;
  std::vector<ops::MainGrad> grads_;  // by ParamId::tensor()
  bool tied_embeddings_;
};

}  // namespace agoq::parallel
