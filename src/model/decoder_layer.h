// One LLaMA decoder layer, forward and backward, as a straight list of ops (design 2).
#pragma once

#include <array>

#include "model/norm.h"
#include "model/parameters.h"
#include "model/saved.h"
#include "ops/accumulate.h"
#include "ops/attention.h"

namespace agoq::model {

using LayerGradients = std::array<ops::MainGrad, kParams>;

class DecoderLayer {
 public:
  DecoderLayer(const ModelConfig& config, const LayerSpec& spec, Tensor rope_table);

  // x [T, H]: the residual stream, updated in place from the layer's input to its output.
  void forward(const Context& ctx, const Tensor& x, const LayerWeights& w, const Saved& saved) const;
  // dx [T, H]: the gradient of the layer's output, updated in place to that of its input. Weight gradients accumulate.
  void backward(const Context& ctx, const Tensor& dx, const LayerWeights& w, const Saved& saved,
                const LayerGradients& grads) const;
  // The same when only x1 was kept: forward runs again from x1.
  void backward_from_x1(const Context& ctx, const Tensor& dx, const LayerWeights& w, const Saved& saved,
                        const LayerGradients& grads) const;

 private:
  void attention_forward(const Context& ctx, const Tensor& x, const LayerWeights& w, const Saved& saved) const;
  void mlp_forward(const Context& ctx, const Tensor& x, const LayerWeights& w, const Saved& saved) const;
  void attention_backward(const Context& ctx, const Tensor& dx, const LayerWeights& w, const Saved& saved,
                          const LayerGradients& grads) const;
  void mlp_backward(const Context& ctx, const Tensor& dx, const LayerWeights& w, const Saved& saved,
                    const LayerGradients& grads) const;
  Tensor rotated_qkv(const Context& ctx, const LayerWeights& w, const Saved& saved) const;

  const LayerSpec& spec_;
  ops::AttentionSpec attention_;
  Norm norm_;
  bool qk_norm_;
  Tensor rope_table_;  // [positions, D]
};

}  // namespace agoq::model
