// Layers' matrices as products in 8-bit floats read them.
#pragma once

#include <vector>

#include "model/layer_spec.h"
#include "ops/linear/fp8.h"
#include "ops/linear/linear.h"

namespace agoq::model {

// How layers [begin, end) of the model multiply weights in 8-bit floats; the others do not.
struct Fp8Holding {
  ops::OperandFormat format;
  int64_t begin = 0, end = 0;
  bool cached = false;  // codes of w and wᵀ stay for all micro-batches of a step: 2 bytes a parameter
};

class Fp8Weights {
 public:
  Fp8Weights() = default;
  Fp8Weights(Arena& arena, const LayerSpec& spec, const std::vector<ParamId>& ids, size_t slots, Fp8Holding holding);

  // A matrix [out, in] of a layer, whose numbers are given. Cached, it is cast by the first who asks after outdate().
  ops::LinearWeight of(const Context& ctx, const ParamId& id, const Tensor& numbers) const;
  // Weights have changed.
  void outdate();

 private:
  // What forward's cast leaves for backward, or the codes of both, if they are cached.
  struct Matrix {
    Tensor transposed_scale;
    ops::Operand codes, transposed;
    mutable bool current = false;
  };
  std::vector<Matrix> matrices_;  // by ParamId::index()
};

}  // namespace agoq::model
