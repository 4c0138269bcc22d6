// One LLaMA decoder layer, forward and backward, as a straight list of ops (design 2). Of T tokens, a rank of the
// tensor group holds T / ranks in the residual stream and in norms, and its heads and part of F of all T in between.
#pragma once

#include <array>

#include "model/norm.h"
#include "model/parameters.h"
#include "model/saved_tensors.h"
#include "ops/attention/attention.h"
#include "ops/gradient/accumulate.h"

namespace agoq::model {

using LayerGradients = std::array<ops::MainGrad, kParams>;

class DecoderLayer {
 public:
  DecoderLayer(const ModelConfig& config, const LayerSpec& spec, Tensor rope_table);

  // x [T / ranks, H]: the residual stream, updated in place from the layer's input to its output.
  void forward(const Context& ctx, const Tensor& x, const LayerWeights& w, const SavedTensors& saved) const;
  // dx [T / ranks, H]: the gradient of the layer's output, updated in place to that of its input. Weight gradients
  // accumulate; those of norms are sums over this rank's tokens and heads alone.
  void backward(const Context& ctx, const Tensor& dx, const LayerWeights& w, const SavedTensors& saved,
                const LayerGradients& grads) const;
  // The same when only x1 was kept: forward runs again from x1.
  void backward_from_x1(const Context& ctx, const Tensor& dx, const LayerWeights& w, const SavedTensors& saved,
                        const LayerGradients& grads) const;

 private:
  void attention_forward(const Context& ctx, const Tensor& x, const LayerWeights& w, const SavedTensors& saved) const;
  void mlp_forward(const Context& ctx, const Tensor& x, const LayerWeights& w, const SavedTensors& saved) const;
  void attention_backward(const Context& ctx, const Tensor& dx, const LayerWeights& w, const SavedTensors& saved,
                          const LayerGradients& grads) const;
  void mlp_backward(const Context& ctx, const Tensor& dx, const LayerWeights& w, const SavedTensors& saved,
                    const LayerGradients& grads) const;
  Tensor recompute_norm(const Context& ctx, const SavedTensors& saved, SavedTensor x, SavedTensor rstd,
                        const Tensor& w) const;
  Tensor rotated_qkv(const Context& ctx, const LayerWeights& w, const SavedTensors& saved) const;

  const LayerSpec& spec_;
  ops::AttentionSpec attention_;
  Norm norm_;
  bool qk_norm_;
  Tensor rope_table_;  // [positions, D]
};

}  // namespace agoq::model
