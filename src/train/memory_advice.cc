#include "train/memory_advice.h"

#include <optional>

#include "plan/stage_plan.h"
#include "train/config/settings.h"

namespace agoq::train {
namespace {

struct SettingChange {
  const char* name;
  const char* value;
  const char* cost;
};

constexpr SettingChange kByRisingCost[] = {
    {"main-params-dtype", "split", "nothing: the same fp32 numbers in fewer bytes"},
    {"exp-avg-dtype", "8bit", "nothing measurable"},
    {"exp-avg-sq-dtype", "8bit", "nothing measurable"},
    {"main-grads-dtype", "int8", "nothing measurable with stochastic rounding"},
    {"fp8-weight-cache", "off", "weights are cast for every micro-batch"},
    {"data-parallel-sharding-strategy", "optim", "weights travel once a step"},
    {"data-parallel-sharding-strategy", "optim_grads", "gradients travel in every micro-batch"},
    {"data-parallel-sharding-strategy", "optim_grads_params", "gradients and weights travel in every micro-batch"},
    {"activation-policy", "agoq", "gradient noise of 4-bit norm and MLP inputs"},
    {"activation-override", "attention=int8", "a little gradient noise from attention"},
    {"recompute-granularity", "selective", "attention's forward runs twice"},
    {"recompute-granularity", "full", "about a third more compute"},
};

// Nothing if the settings contradict each other, or ask for a division that the model does not allow.
std::optional<parallel::RunSpec> possible_run_spec(const TrainConfig& config, const model::ModelConfig& model,
                                                   int world) {
  try {
    parallel::RunSpec run_spec = make_run_spec(config, model, {0, world});
    const model::LayerSpec spec(run_spec.model, run_spec.parallelism.tensor());
    spec.own_tokens(run_spec.tokens());
    const parallel::StageShard part(run_spec.model, spec, run_spec.parallelism);
    return run_spec;
  } catch (const Error&) {
    return std::nullopt;
  }
}

class Candidates {
 public:
  Candidates(const TrainConfig& config, const model::ModelConfig& model, int world)
      : config_(config), model_(model), world_(world) {}

  // --baseline overrules the precision settings one by one, so there it goes as a whole.
  void add_without_baseline() {
    TrainConfig changed = config_;
    const TrainConfig defaults;
    for (const Setting& setting : all_settings())
      if (setting.group == "Precision" && setting.name != "compute-dtype" && setting.name != "recompute-granularity")
        assign(changed, setting, {text_of(defaults, setting)});
    add("without --baseline", "nothing measurable but gradient noise of 4-bit activations", changed);
  }

  void add_setting(const SettingChange& change) {
    TrainConfig changed = config_;
    const Setting& setting = find_setting(change.name);
    std::string value = change.value;
    if (setting.name == "activation-override" && !config_.activation_override.empty())
      value = config_.activation_override + ";" + value;
    if (text_of(changed, setting) == value) return;
    const bool of_baseline = setting.group == "Precision" && setting.name != "recompute-granularity";
    if (!config_.baseline.empty() && of_baseline) return;
    assign(changed, setting, {value});
    const std::string shown = value.find_first_of(";=") == std::string::npos ? value : "'" + value + "'";
    add(fmt::format("--{} {}", setting.name, shown), change.cost, changed);
  }

  void add_8bit_moments() {
    TrainConfig changed = config_;
    if (!config_.baseline.empty() || changed.exp_avg_dtype == "8bit" || changed.exp_avg_sq_dtype == "8bit") return;
    changed.exp_avg_dtype = changed.exp_avg_sq_dtype = "8bit";
    add("--exp-avg-dtype 8bit --exp-avg-sq-dtype 8bit", "nothing measurable", changed);
  }

  void add_micro_batch(int64_t size) {
    TrainConfig changed = config_;
    changed.micro_batch_size = size;
    add(fmt::format("--micro-batch-size {}", size), "smaller matrix products", changed);
  }

  void add_sequence(int64_t length) {
    TrainConfig changed = config_;
    changed.seq_length = length;
    add(fmt::format("--seq-length {}", length), "shorter context", changed);
  }

  // Twice as many, along each axis.
  void add_processes() {
    TrainConfig changed = config_;
    changed.global_batch_size *= 2;
    add_processes("global-batch-size", changed, "twice the processes, a larger batch");
    changed = config_;
    changed.pipeline_model_parallel_size *= 2;
    add_processes("pipeline-model-parallel-size", changed, "twice the processes, idle at both ends of a step");
    changed = config_;
    changed.tensor_model_parallel_size *= 2;
    add_processes("tensor-model-parallel-size", changed,
                  "twice the processes, which wait for each other in every layer");
  }

  std::vector<plan::Change> take() { return std::move(changes_); }

 private:
  void add(std::string what, std::string cost, const TrainConfig& changed) {
    add(std::move(what), std::move(cost), changed, world_);
  }
  void add(std::string what, std::string cost, const TrainConfig& changed, int world) {
    if (std::optional<parallel::RunSpec> run_spec = possible_run_spec(changed, model_, world))
      changes_.push_back({std::move(what), std::move(cost), std::move(*run_spec)});
  }
  void add_processes(std::string_view name, const TrainConfig& changed, const char* cost) {
    add(fmt::format("--world-size {} --{} {}", 2 * world_, name, text_of(changed, find_setting(name))), cost, changed,
        2 * world_);
  }

  const TrainConfig& config_;
  const model::ModelConfig& model_;
  int world_;
  std::vector<plan::Change> changes_;
};

// The largest divisor of a data rank's sequences below the micro-batch with which the job fits, or 1.
int64_t smaller_micro_batch(const TrainConfig& config, const model::ModelConfig& model, int world, size_t budget,
                            Device target) {
  const int64_t sequences = config.global_batch_size / (world / model_ranks(config));
  for (int64_t size = config.micro_batch_size - 1; size > 1; --size) {
    if (sequences % size != 0) continue;
    TrainConfig smaller = config;
    smaller.micro_batch_size = size;
    const std::optional<parallel::RunSpec> run_spec = possible_run_spec(smaller, model, world);
    if (run_spec && plan::largest_total(*run_spec, target) <= budget) return size;
  }
  return 1;
}

}  // namespace

std::vector<plan::Advice> memory_advice(const TrainConfig& config, const model::ModelConfig& model, int world,
                                        size_t budget, Device target) {
  const parallel::RunSpec run_spec = make_run_spec(config, model, {0, world});
  Candidates candidates(config, model, world);
  if (!config.baseline.empty()) candidates.add_without_baseline();
  candidates.add_8bit_moments();
  for (const SettingChange& change : kByRisingCost) candidates.add_setting(change);
  if (config.micro_batch_size > 1)
    candidates.add_micro_batch(smaller_micro_batch(config, model, world, budget, target));
  const int64_t unit = config.seq_length > 1024 ? 1024 : 64;
  if (const int64_t length = plan::longest_sequence(run_spec, target, budget, unit); length > 0)
    candidates.add_sequence(length);
  candidates.add_processes();
  return plan::advise(candidates.take(), plan::largest_total(run_spec, target), budget, target);
}

}  // namespace agoq::train
