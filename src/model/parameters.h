// The model's weights: who owns them, in which form they are held, and how a layer gets to read them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/layer_spec.h"
#include "ops/weight.h"

namespace agoq::model {

enum class MasterForm : uint8_t {
  Split,  // bf16 + int16 correction: exact fp32 in 4 bytes
  Fp32,   // fp32, and a bf16 copy beside it when GEMMs read bf16
};

// The weights of one layer (or of the ends of the model) in the compute type, valid within the scope they were acquired
// in.
class LayerWeights {
 public:
  const Tensor& operator[](Param p) const { return tensors_[static_cast<size_t>(p)]; }
  Tensor& operator[](Param p) { return tensors_[static_cast<size_t>(p)]; }

 private:
  std::array<Tensor, kParams> tensors_{};
};

class Parameters {
 public:
  Parameters(Arena& arena, const ModelConfig& config, const LayerSpec& spec, MasterForm form, DType compute);

  const std::vector<ParamId>& ids() const { return ids_; }
  const ops::Weight& at(const ParamId& id) const;
  // The head's weight: its own, or the embedding's where they are tied.
  ParamId head_id() const;

  // One layer's weights as GEMMs read them. Where the held form differs (CPU in fp32), they are widened into the
  // caller's scope, one layer at a time.
  LayerWeights acquire(const Context& ctx, int64_t layer) const;
  // An empty tensor if this architecture has no such parameter.
  Tensor acquire(const Context& ctx, const ParamId& id) const;

  // Random initialisation from Philox by (seed, logical tensor, index): the same under every mesh.
  void initialize(const Context& ctx, uint64_t seed);

 private:
  const ModelConfig& config_;
  const LayerSpec& spec_;
  std::vector<ParamId> ids_;
  std::vector<ops::Weight> weights_;  // by ParamId::tensor()
};

}  // namespace agoq::model
