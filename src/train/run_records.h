// What a run writes into its folder beside checkpoints: settings, recipe, metrics, memory and the summary. Once the run
// has begun, a file that cannot be written (a full disk) is told, and the run goes on.
#pragma once

#include <optional>
#include <string>

#include "train/config/config.h"
#include "train/metrics.h"
#include "train/run_folder.h"
#include "train/summary.h"

namespace agoq::train {

class RunRecords {
 public:
  // Of a run with `steps_done` steps behind it; `recipe` as JSON. Here an error ends the start.
  RunRecords(const RunFolder& folder, const TrainConfig& config, const std::string& recipe, int64_t steps_done);

  void config(const TrainConfig& config) const;
  void memory(const std::string& json) const;
  void summary(const Summary& summary, const std::string& evaluation_error) const;
  // Writes a line of metrics.jsonl. Once that fails, nothing more is written, and the text of the failure is returned,
  // once; otherwise "".
  std::string step(const StepMetrics& metrics);
  std::string valid(int64_t step, double valid_loss);

 private:
  template <class Write>
  void write(const char* name, Write&& write) const;
  template <class Write>
  std::string record(int64_t step, Write&& write);

  const RunFolder& folder_;
  std::optional<MetricsWriter> metrics_;  // none once it has failed
};

}  // namespace agoq::train
