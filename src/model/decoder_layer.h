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

// What attention and the MLP have in common: x += out(in(norm(x))), or x += norm(out(in(x))) with the norm behind.
struct Branch {
  Param norm, in, out;        // the weights
  SavedTensor x, n, y, rstd;  // the branch's input, that of its first product, what its last product makes; of the norm
};

// The gradient of the residual stream [T / ranks, H], and the same in 8-bit floats with a scale per row where a layer's
// products read those: its norms' backward writes both.
struct StreamGradient {
  Tensor dx;
  ops::Operand dx_rows;  // or none
};

class DecoderLayer {
 public:
  DecoderLayer(const ModelConfig& config, const LayerSpec& spec, Tensor rope_table);

  // x [T / ranks, H]: the residual stream, updated in place from the layer's input to its output.
  void forward(const Context& ctx, const Tensor& x, const LayerWeights& w, const SavedTensors& saved) const;
  // d: the gradient of the layer's output, updated in place to that of its input. Weight gradients accumulate; those of
  // norms are sums over this rank's tokens and heads alone.
  void backward(const Context& ctx, const StreamGradient& d, const LayerWeights& w, const SavedTensors& saved,
                const LayerGradients& grads) const;
  // The same when only x1 was kept: forward runs again from x1.
  void backward_from_x1(const Context& ctx, const StreamGradient& d, const LayerWeights& w, const SavedTensors& saved,
                        const LayerGradients& grads) const;

 private:
  void attention_forward(const Context& ctx, const Tensor& x, const LayerWeights& w, const SavedTensors& saved) const;
  void mlp_forward(const Context& ctx, const Tensor& x, const LayerWeights& w, const SavedTensors& saved) const;
  void attention_backward(const Context& ctx, const StreamGradient& d, const LayerWeights& w, const SavedTensors& saved,
                          const LayerGradients& grads) const;
  void mlp_backward(const Context& ctx, const StreamGradient& d, const LayerWeights& w, const SavedTensors& saved,
                    const LayerGradients& grads) const;
  ops::Operand first_input(const Context& ctx, const Tensor& x, const LayerWeights& w, const SavedTensors& saved,
                           const Branch& branch) const;
  void add_output(const Context& ctx, const ops::Operand& h, const Tensor& x, const LayerWeights& w,
                  const SavedTensors& saved, const Branch& branch) const;
  ops::Operand output_gradient(const Context& ctx, const StreamGradient& d, const LayerWeights& w,
                               const SavedTensors& saved, const LayerGradients& grads, const Branch& branch) const;
  void first_backward(const Context& ctx, const ops::Operand& dh, const StreamGradient& d, const LayerWeights& w,
                      const SavedTensors& saved, const LayerGradients& grads, const Branch& branch) const;
  ops::Operand first_input_transposed(const Context& ctx, const LayerWeights& w, const SavedTensors& saved,
                                      const Branch& branch) const;
  ops::Operand qkv_gradient(const Context& ctx, const Tensor& dqkv, const LayerWeights& w, const SavedTensors& saved,
                            const LayerGradients& grads) const;
  Tensor rotated_qkv(const Context& ctx, const LayerWeights& w, const SavedTensors& saved) const;

  const LayerSpec& spec_;
  ops::AttentionSpec attention_;
  Norm norm_;
  QueryKeyNorm qk_norm_;
  bool post_norm_;
  Tensor rope_table_;  // [positions, D]
};

}  // namespace agoq::model
