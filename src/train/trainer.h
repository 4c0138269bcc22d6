// A training run from start (or the last checkpoint) to end.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/transport/transport.h"
#include "train/metrics.h"
#include "train/run_plan.h"
#include "train/summary.h"

namespace agoq::train {

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
