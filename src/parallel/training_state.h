// Everything that one process holds to train (or only to read a model): built the same way on a real device and on
// Meta, where it only counts bytes.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "device/staging.h"
#include "model/model.h"
#include "parallel/gradients.h"
#include "parallel/optimizer.h"

namespace agoq::parallel {

// What has to be known before step 0 to lay out memory.
struct Job {
  model::ModelConfig model;
  model::Recipe recipe;
  Precision precision;
  int64_t micro_batch_size = 1;
  int64_t sequence_length = 0;
  bool deterministic = false;  // Context::deterministic
  bool training = true;        // false: weights only, for evaluation, generation and export
  int64_t tokens() const { return micro_batch_size * sequence_length; }  // T
};

// Host arrays of one micro-batch, each [T].
struct MicroBatch {
  Tensor tokens, targets;            // int32
  Tensor loss_weights;               // fp32
  Tensor positions, document_start;  // int32
};

class TrainingState {
 public:
  TrainingState(Arena& arena, Device target, const Job& job);
  TrainingState(const TrainingState&) = delete;
  TrainingState& operator=(const TrainingState&) = delete;

  const Job& job() const { return job_; }
  const model::LayerSpec& spec() const { return spec_; }
  model::Parameters& params() { return params_; }
  Gradients& grads() { return grads_.value(); }
  Optimizer& optimizer() { return optimizer_.value(); }
  Context& context() { return ctx_; }

  // Forward and backward of one micro-batch; gradients of scale · Σ weight · nll accumulate from grads().begin_step()
  // on. `index` is the global micro-batch index within the step. Waits for nothing: a GPU may still be computing when
  // it returns.
  void forward_backward(const MicroBatch& batch, uint32_t index, float scale);
  // Forward without keeping anything.
  void evaluate(const MicroBatch& batch);
  // Σ weight · nll of all micro-batches since the last call; waits for them.
  double take_loss();
  // Logits [V] of position `row`, valid until `use` returns (generation). The batch may be shorter than the job's.
  void logits(const MicroBatch& batch, int64_t row, const std::function<void(std::span<const float>)>& use);
  // Every call above and one update on no data: what a dry run on Meta executes. On a GPU, before step 0: loads what
  // libraries load, chooses GEMM algorithms; weights and optimizer state stay what they are, gradients do not.
  void rehearse();

  // All tensors that a checkpoint holds, by logical name: "weights/layers.0.qkv", "exp_avg.codes/layers.0.qkv", ...
  // (without moments where the job is not for training). The same whatever the compute type.
  std::vector<std::pair<std::string, Tensor>> named_tensors();

 private:
  // Copies the arrays to the device, and tells the context which documents they hold; returns them there, as long as
  // they are.
  MicroBatch load(const MicroBatch& batch);
  Documents load_documents(const Tensor& document_start);
  void load_whole(const MicroBatch& batch);

  Job job_;
  model::LayerSpec spec_;
  Context ctx_;
  model::Parameters params_;
  std::optional<Gradients> grads_;  // of a training job
  std::optional<Optimizer> optimizer_;
  model::Model model_;
  std::vector<model::Saved> saved_;
  MicroBatch inputs_;
  Tensor document_offsets_;  // [T + 1] int32, where a GPU needs it
  Staging staging_;
  Tensor nll_;   // [T]
  Tensor loss_;  // [1] fp64: Σ weight · nll so far
};

}  // namespace agoq::parallel
