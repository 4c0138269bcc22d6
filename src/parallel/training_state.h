// Everything that one process holds to train (or only to read a model): built the same way on a real device and on
// Meta, where it only counts bytes.
#pragma once

#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "device/staging.h"
#include "model/model.h"
#include "parallel/gradients.h"
#include "parallel/optimizer.h"
#include "parallel/pipeline_buffer.h"
#include "parallel/saved_slots.h"
#include "parallel/schedule.h"
#include "parallel/stored_state.h"

namespace agoq::parallel {

// What has to be known before step 0 to lay out memory.
struct RunSpec {
  model::ModelConfig model;
  model::Recipe recipe;
  Precision precision;
  int64_t micro_batch_size = 1;
  int64_t sequence_length = 0;
  Parallelism parallelism;
  bool deterministic = false;  // Context::deterministic
  bool training = true;        // false: weights only, for evaluation, generation and export
  int64_t tokens() const { return micro_batch_size * sequence_length; }  // T
};

// The most activations, of one chunk and one micro-batch each, that this process keeps at a time; each needs a saved
// slot.
int peak_in_flight(const RunSpec& run_spec);

// Host arrays of one micro-batch, each [T].
struct MicroBatch {
  Tensor tokens, targets;            // int32
  Tensor loss_weights;               // fp32
  Tensor positions, document_start;  // int32
};

class TrainingState {
 public:
  // `transport`: to the other processes of run_spec.parallelism's mesh; may be null where there are none, or for a dry
  // run.
  TrainingState(Arena& arena, Device target, const RunSpec& run_spec, comm::Transport* transport = nullptr);
  TrainingState(const TrainingState&) = delete;
  TrainingState& operator=(const TrainingState&) = delete;
  // After an error exchanges are given up first: freeing memory would wait for those that other ranks never answer.
  ~TrainingState();

  const RunSpec& run_spec() const { return run_spec_; }
  const model::LayerSpec& spec() const { return spec_; }
  model::Parameters& params() { return params_; }
  Gradients& grads() { return grads_.value(); }
  Optimizer& optimizer() { return optimizer_.value(); }
  const model::DelayedScales* scales() const { return scales_ ? &*scales_ : nullptr; }  // of --fp8-recipe delayed
  Context& context() { return ctx_; }
  const Groups& groups() const { return groups_; }
  const ShardPlan& shard_plan() const { return shard_plan_; }
  const StageShard& stage_shard() const { return stage_shard_; }
  const SavedSlots& saved() const { return saved_; }

  // Where several processes hold the model, all calls below are made by all of them alike.

  // Weights are new, and gradients start from nothing. `micro_batches` as in Gradients::begin_step.
  void begin_step(int micro_batches = 0);
  // Forward and backward of this data rank's micro-batches of a step, in the order of the pipeline's schedule;
  // gradients of scale · Σ weight · nll accumulate from begin_step() on. Waits for nothing but other ranks: a
  // GPU may still be computing when it returns.
  void forward_backward(std::span<const MicroBatch> batches, float scale);
  // The same of one micro-batch, which is number `index` of this data rank in the step. Not for a pipeline.
  void forward_backward(const MicroBatch& batch, int index, float scale);
  // After optimizer().step(): what it did; waits for it. Scales of the next step are made of what this one saw, unless
  // it was skipped.
  UpdateResult end_step();
  // Scales are those of their history alone, whatever was computed since the last step.
  void reset_scales();
  // Forward without keeping anything.
  void evaluate(const MicroBatch& batch);
  // Σ weight · nll of all micro-batches of all data ranks since the last call; waits for them.
  double take_loss();
  // From now on, or no more: whether numbers that become 8-bit floats are counted, if products take any.
  void count_fp8(bool on) { ctx_.fp8_counter = on && fp8_counter_ ? &*fp8_counter_ : nullptr; }
  // Those counted since the last call, of all ranks; waits for them. None if nobody counts.
  std::optional<ops::Fp8Counts> take_fp8_counts();
  // Logits [V] of position `row`, valid until `use` returns (generation). The batch may be shorter than the job's.
  void logits(const MicroBatch& batch, int64_t row, const std::function<void(std::span<const float>)>& use);
  // Every call above and one update on no data: what a dry run on Meta executes. On a GPU, before step 0: loads what
  // libraries load, chooses GEMM algorithms; weights and optimizer state stay what they are, gradients do not.
  void dry_run();
  // On Meta: what this process sends in a step of all its micro-batches.
  Traffic dry_traffic();

  // All tensors that a checkpoint saves and fills, by logical name: "weights/layers.0.qkv",
  // "exp_avg.codes/layers.0.qkv", ... (without moments where the job is not for training). What is saved is the same
  // whatever the compute type: bf16 beside an fp32 master is a replica, "weights/..." too.
  std::vector<StoredTensor> named_tensors();

 private:
  // Copies the arrays to the device, and tells the context which documents they hold; returns them there, as long as
  // they are.
  MicroBatch load(const MicroBatch& batch);
  MicroBatch padded(const MicroBatch& loaded) const;
  Documents load_documents(const Tensor& document_start);
  void load_whole(const MicroBatch& batch);

  HeldParameter held(const model::ParamId& id);
  // `next`: the action that follows; null if none does.
  void run(const Action& action, const Action* next, const MicroBatch& batch, float scale);
  void dry_step(const MicroBatch& batch, int micro_batches = 1);
  void end_dry_step();
  Traffic whole_dry_step(const MicroBatch& batch, int micro_batches);  // with its update; what it sends
  void finish_dry_steps(const MicroBatch& batch);
  void forward(const Action& action, const Action* next);
  void backward(const Action& action, const Action* next, float scale);
  // Of an action whose input another stage sends: where it arrives. expect() begins to receive it, input() waits.
  int64_t first_layer(const Action* action) const;
  bool receives(const Action& action) const;
  void expect(const Action& action);
  PipelineBuffer& input(const Action& action);
  void look_ahead(const Action& action, const Action* next);
  bool whole_sequences(const MicroBatch& batch) const;
  // Through all chunks without keeping anything; returns what the head reads, where the head is.
  Tensor forward_only(const Context& ctx, const Tensor& tokens);
  void share_from_last_stage(const Context& ctx, const Tensor& x) const;
  void allocate_streams(Arena& arena);
  PipelineBuffer& buffer(const Action& action);
  const comm::ProcessGroup& link(Step step, int from) const;  // that carries what stage `from` sends
  int next_stage() const;
  int previous_stage() const;

  RunSpec run_spec_;
  Groups groups_;
  model::LayerSpec spec_;
  StageShard stage_shard_;
  Context ctx_;
  ShardPlan shard_plan_;
  model::Parameters params_;
  std::optional<model::DelayedScales> scales_;
  std::optional<Gradients> grads_;  // of a training job
  std::optional<Optimizer> optimizer_;
  model::Model model_;
  SavedSlots saved_;
  // The residual stream [T / ranks, H]: of the last chunk's micro-batches in flight; on its way to the stages beside.
  std::vector<PipelineBuffer> outputs_;
  PipelineBufferRing forward_, backward_;
  Incoming expected_;  // by the next action
  bool may_look_ahead_ = true;
  int exceptions_ = std::uncaught_exceptions();
  MicroBatch inputs_;
  const void* loaded_ = nullptr;  // the tokens of the micro-batch that inputs_ hold
  Tensor document_offsets_;       // [T + 1] int32, where a GPU needs it
  Staging staging_;
  Tensor nll_;                                  // [T]
  Tensor loss_;                                 // [1] fp64: Σ weight · nll so far
  std::optional<ops::Fp8Counter> fp8_counter_;  // of a training job in 8-bit floats
};

}  // namespace agoq::parallel
