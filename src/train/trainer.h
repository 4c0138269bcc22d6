// A training run from start (or the last checkpoint) to end.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/transport/transport.h"
#include "plan/layout.h"
#include "train/config/config.h"
#include "train/metrics.h"

namespace agoq::train {

// What is settled before the first step.
struct RunPlan {
  TrainConfig config;  // resolved
  model::ModelConfig model;
  std::vector<int32_t> stop_tokens;  // that end a generated text
  std::string device;                // "cpu", or the GPU's name
  parallel::Parallelism parallelism;
  int64_t parameters = 0;   // of this process's part of the model
  int64_t kept_layers = 0;  // whose activations it keeps, each micro-batch in flight counted
  plan::Layout layout;      // what this process holds
  plan::Layout reference;   // what unquantized training of the same micro-batch would hold

  // Of either layout.
  double bytes_per_parameter(const plan::Layout& of) const;  // weights, corrections, gradients, moments
  double saved_bytes_per_token_layer(const plan::Layout& of) const;
};

struct Summary {
  int64_t step = 0;                  // steps done
  bool stopped_early = false;        // by a signal or --exit-duration-in-mins, after saving
  bool time_is_up = false;           // the latter
  std::optional<double> valid_loss;  // the last one; none if it could not be measured
  double train_loss = 0;             // of the last step
  uint64_t tokens = 0;
  double tokens_per_second = 0;
  double bytes_per_parameter = 0;
  double saved_bytes_per_token_layer = 0;
  int64_t skipped = 0, without_targets = 0;  // steps; the latter of the former
};

// What the run tells while it goes; every member may be empty.
struct Observer {
  // Before memory is reserved. The plan lives as long as the trainer, and is kept up to date.
  std::function<void(const RunPlan& plan)> on_plan;
  std::function<void(const StepMetrics& metrics)> on_step;
  std::function<void(int64_t step, double valid_loss)> on_valid;
  std::function<void(const std::string& text)> on_note;  // resumed from, saved to, ...
};

// The processes of a run: how they reach each other, and who of them is on this machine. By itself: one process.
struct Processes {
  comm::Transport* transport = nullptr;  // outlives the trainer
  int local_rank = 0, local_world = 1;
};

class Trainer {
 public:
  // On every process of the run alike; the observer of rank 0 alone is told anything.
  explicit Trainer(const TrainConfig& config, Observer observer = {}, const Processes& processes = {});
  ~Trainer();
  // Trains to train_iters, or to as many of them as train_minutes allow; `stop` (set by a signal handler) ends the run
  // at the next step boundary, saved.
  Summary run(const std::atomic<bool>& stop);
  const RunPlan& plan() const;
  int64_t step() const;  // steps done
  // The live model, e.g. to export it.
  parallel::TrainingState& state();

 private:
  class Run;
  std::unique_ptr<Run> run_;
};

}  // namespace agoq::train
