// metrics.jsonl: the history of a run, one JSON object a line; and the line that people watch.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "base/file_descriptor.h"
#include "device/exposed.h"
#include "ops/linear/fp8_counts.h"

namespace agoq::train {

struct StepMetrics {
  int64_t step = 0;  // steps done, this one included
  double loss = 0, lr = 0, grad_norm = 0;
  double step_ms = 0, tokens_per_second = 0;
  double tflops = 0;            // of the model's arithmetic
  double mfu = 0;               // in [0, 1], of the GPUs' datasheets; 0, and told nowhere, on CPUs and unlisted GPUs
  uint64_t memory_bytes = 0;    // the highest over ranks
  int64_t skipped = 0;          // steps skipped so far
  int64_t without_targets = 0;  // those of them in which nothing counted for the loss
  bool counted = true;          // false: this step is one of those, and its loss is NaN
  // Of several processes: how long computing stood still for others, the highest over ranks of each kind.
  std::optional<ExposedSeconds> exposed{};
  // With --fp8-format, in the steps that count: of all ranks.
  std::optional<ops::Fp8Counts> fp8{};
};

// Losses and other results are written so that reading them gives the same double; a number that JSON cannot express
// (NaN, infinity) is written as null. Every line reaches the file before the call returns.
class MetricsWriter {
 public:
  // Continues the history of a run that resumes with `steps_done` steps behind it: lines of later steps, which will be
  // run again, a line that a killed writer left unfinished, and an evaluation that is told a second time are dropped.
  // steps_done = 0 begins anew.
  MetricsWriter(std::string path, int64_t steps_done);

  void step(const StepMetrics& metrics);
  // Once a step: an evaluation that a restarted run makes again, of the same weights, is not written again.
  void valid(int64_t step, double valid_loss);

 private:
  void append(std::string_view line);

  std::string path_;
  FileDescriptor file_;
  std::set<int64_t> evaluated_;  // steps
};

// "  120/2000 | loss 2.3456 | lr 3.00e-04 | grad norm 0.512 | 123.4 ms/step | ..." in columns of constant width.
std::string log_line(const StepMetrics& metrics, int64_t total_steps, double eta_seconds);

}  // namespace agoq::train
