#include "train/run_records.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "train/config/settings.h"

namespace agoq::train {

using Json = nlohmann::ordered_json;

RunRecords::RunRecords(const RunFolder& folder, const TrainConfig& config, const std::string& recipe,
                       int64_t steps_done)
    : folder_(folder) {
  folder_.write("config.toml", to_toml(config));
  folder_.write_json("recipe.json", recipe);
  if (steps_done < config.train_iters) std::filesystem::remove(folder_.summary());  // of an earlier, shorter run
  metrics_.emplace(folder_.metrics(), steps_done);
}

template <class Write>
void RunRecords::write(const char* name, Write&& write) const {
  try {
    write();
  } catch (const std::exception& error) {
    log_warning("{} is not written: {}; the run goes on", name, error.what());
  }
}

template <class Write>
std::string RunRecords::record(int64_t step, Write&& write) {
  if (!metrics_) return {};
  try {
    write();
    return {};
  } catch (const Error& error) {
    metrics_.reset();
    return fmt::format("metrics.jsonl ends before step {}: {}; training goes on", step, error.what());
  }
}

void RunRecords::config(const TrainConfig& config) const {
  write("config.toml", [&] { folder_.write("config.toml", to_toml(config)); });
}

void RunRecords::memory(const std::string& json) const {
  write("memory.json", [&] { folder_.write_json("memory.json", json); });
}

void RunRecords::summary(const Summary& summary, const std::string& evaluation_error) const {
  Json json;
  json["valid_loss"] = summary.valid_loss ? Json(*summary.valid_loss) : Json();
  if (!evaluation_error.empty()) json["evaluation_error"] = evaluation_error;
  json["tokens"] = summary.tokens;
  json["tokens_per_second"] = summary.tokens_per_second;
  json["bytes_per_parameter"] = summary.bytes_per_parameter;
  json["saved_bytes_per_token_layer"] = summary.saved_bytes_per_token_layer;
  write("summary.json", [&] { folder_.write_json("summary.json", json.dump()); });
}

std::string RunRecords::step(const StepMetrics& metrics) {
  return record(metrics.step, [&] { metrics_->step(metrics); });
}

std::string RunRecords::valid(int64_t step, double valid_loss) {
  return record(step, [&] { metrics_->valid(step, valid_loss); });
}

}  // namespace agoq::train
