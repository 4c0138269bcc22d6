// The model: embedding, layers, head, in pieces that a schedule can call (one process runs them in order; pipeline
// stages run some of them). Over the tensor group, each of its ranks holds T / ranks rows of the residual stream.
#pragma once

#include <optional>
#include <vector>

#include "model/decoder_layer.h"
#include "model/delayed_scales.h"
#include "ops/head/cross_entropy.h"
#include "ops/linear/fp8.h"

namespace agoq::model {

// Main gradient of every parameter; the interface that the model needs of whoever stores them.
class GradientSource {
 public:
  virtual ~GradientSource() = default;
  // For the one who adds next. If it is fresh, all of it must be written: what is not added to stays undefined.
  virtual ops::MainGrad acquire(const Context& ctx, const ParamId& id) = 0;
  // A micro-batch has added all that it has.
  virtual void contributed(const Context&, const ParamId&) {}
};

// Which layers multiply in 8-bit floats while they train: all but some at both ends, if any do. Evaluation multiplies
// in the compute type.
struct Fp8Layers {
  std::optional<ops::Fp8Recipe> recipe;
  int64_t excepted_at_start = 0, excepted_at_end = 0;
  bool cache_weights = false;  // --fp8-weight-cache

  // Of layer `layer` of `layers`; null: it multiplies in the compute type.
  const ops::Fp8Recipe* of(int64_t layer, int64_t layers) const {
    return recipe && layer >= excepted_at_start && layer < layers - excepted_at_end ? &*recipe : nullptr;
  }
  std::optional<Fp8Holding> weights(int64_t layers) const {
    if (!recipe || recipe->delayed) return {};  // whose scales are not found in weights
    return Fp8Holding{recipe->w, excepted_at_start, layers - excepted_at_end, cache_weights};
  }
  bool operator==(const Fp8Layers&) const = default;
};

class Model {
 public:
  // The rope table [max(positions), D] is allocated from the arena. `recompute`: as in the recipe of what is saved.
  // `scales`: where the recipe of `fp8` is delayed, of the layers that are trained; they outlive the model.
  Model(Arena& arena, const ModelConfig& config, const LayerSpec& spec, int64_t positions, Recompute recompute,
        const Fp8Layers& fp8 = {}, const DelayedScales* scales = nullptr);

  const ModelConfig& config() const { return config_; }
  const LayerSpec& spec() const { return spec_; }

  // tokens [T] -> the residual stream x [T / ranks, H].
  void embed(const Context& ctx, const Parameters& params, const Tensor& tokens, const Tensor& x) const;
  // Layers [begin, end) on x in place; saved[layer - begin], or nothing kept if `saved` is empty. `then`: the layer
  // whose weights are read next, if it is known: where they are gathered, that begins before the last layer computes.
  void forward(const Context& ctx, const Parameters& params, const Tensor& x, int64_t begin, int64_t end,
               const std::vector<SavedTensors>& saved, int64_t then = -1) const;
  void backward(const Context& ctx, const Parameters& params, const Tensor& dx, int64_t begin, int64_t end,
                const std::vector<SavedTensors>& saved, GradientSource& grads, int64_t then = -1) const;
  // Final norm, head and loss: nll [T] of every token.
  void loss(const Context& ctx, const Parameters& params, const Tensor& x, const ops::Targets& targets,
            const Tensor& nll) const;
  // The same, and the gradient of scale · Σ weight · nll with respect to x, which replaces x.
  void loss_backward(const Context& ctx, const Parameters& params, const Tensor& x, const ops::Targets& targets,
                     float scale, const Tensor& nll, GradientSource& grads) const;
  void embed_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, GradientSource& grads) const;
  // Logits [1, V] fp32 of one token of the residual stream x, all of them on all ranks (generation).
  Tensor logits(const Context& ctx, const Parameters& params, const Tensor& x, int64_t token) const;

 private:
  ops::Targets of_vocabulary(ops::Targets targets) const;  // for the rank's rows of the head
  static void prefetch(const Context& ctx, const Parameters& params, int64_t layer);
  LayerWeights layer_weights(const Context& ctx, const Parameters& params, int64_t layer) const;
  LayerGradients layer_gradients(const Context& ctx, int64_t layer, GradientSource& grads) const;
  ops::Operand stream_rows(const Context& ctx, const Tensor& dx) const;
  Context of_layer(const Context& ctx, int64_t layer) const;  // with the layer's Fp8Recipe

  const ModelConfig& config_;
  const LayerSpec& spec_;
  const Recompute recompute_;
  const Fp8Layers fp8_;
  const DelayedScales* scales_;
  DecoderLayer layer_;
};

}  // namespace agoq::model
