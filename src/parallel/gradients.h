// Main gradients of all parameters, in the chosen format; 1-D parameters keep fp32.
#pragma once

#include <vector>

#include "model/model.h"
#include "parallel/precision.h"

namespace agoq::parallel {

class Gradients : public model::GradientSource {
 public:
  Gradients(Arena& arena, const model::ModelConfig& config, const model::LayerSpec& spec, const Precision& precision);
  ops::MainGrad grad(const model::ParamId& id) const override { return grads_[id.tensor()]; }
  void zero(const Context& ctx) const;

 private:
  std::vector<model::ParamId> ids_;
  std::vector<ops::MainGrad> grads_;  // by ParamId::tensor()
};

}  // namespace agoq::parallel
