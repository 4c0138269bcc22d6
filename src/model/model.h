// The model: embedding, layers, head, in pieces that a schedule can call (one process runs them in order; pipeline
// stages run some of them).
#pragma once

#include <vector>

#include "model/decoder_layer.h"
#include "ops/cross_entropy.h"

namespace agoq::model {

// Main gradient of every parameter; the interface that the model needs of whoever stores them.
class GradientSource {
 public:
  virtual ~GradientSource() = default;
  // For the one who adds next. If it is fresh, all of it must be written: what is not added to stays undefined.
  virtual ops::MainGrad acquire(const ParamId& id) = 0;
};

class Model {
 public:
  // The rope table [max(positions), D] is allocated from the arena.
  Model(Arena& arena, const ModelConfig& config, const LayerSpec& spec, int64_t positions);

  const ModelConfig& config() const { return config_; }
  const LayerSpec& spec() const { return spec_; }

  // tokens [T] -> the residual stream [T, H], a temporary of the caller's scope.
  Tensor embed(const Context& ctx, const Parameters& params, const Tensor& tokens) const;
  // Layers [begin, end) on x in place; saved[layer - begin], or nothing kept if `saved` is empty.
  void forward(const Context& ctx, const Parameters& params, const Tensor& x, int64_t begin, int64_t end,
               const std::vector<Saved>& saved) const;
  void backward(const Context& ctx, const Parameters& params, const Tensor& dx, int64_t begin, int64_t end,
                const std::vector<Saved>& saved, GradientSource& grads) const;
  // Final norm, head and loss: nll [T] of every token.
  void loss(const Context& ctx, const Parameters& params, const Tensor& x, const ops::Targets& targets,
            const Tensor& nll) const;
  // The same, and the gradient of scale · Σ weight · nll with respect to x, which replaces x.
  void loss_backward(const Context& ctx, const Parameters& params, const Tensor& x, const ops::Targets& targets,
                     float scale, const Tensor& nll, GradientSource& grads) const;
  void embed_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, GradientSource& grads) const;
  // Logits [rows, V] fp32 of some rows of the residual stream x [rows, H] (generation).
  Tensor logits(const Context& ctx, const Parameters& params, const Tensor& x) const;

 private:
  LayerGradients layer_gradients(int64_t layer, GradientSource& grads) const;

  const ModelConfig& config_;
  const LayerSpec& spec_;
  DecoderLayer layer_;
};

}  // namespace agoq::model
