#include "agoq/agoq.h"

#include <omp.h>

#include <atomic>
#include <set>
#include <string_view>
#include <vector>

#include "plan/comparison.h"
#include "plan/stage_plan.h"
#include "train/config/settings.h"
#include "train/inference.h"
#include "train/init_source.h"
#include "train/trainer.h"

namespace agoq {

struct Settings::Impl {
  train::TrainConfig config;
  std::set<std::string_view> given;  // by set(); what load() brings gives way to a baseline
};

Settings::Settings() : impl_(std::make_unique<Impl>()) {}
Settings::Settings(const Settings& other) : impl_(std::make_unique<Impl>(*other.impl_)) {}
Settings& Settings::operator=(const Settings& other) {
  return *this = Settings(other);
}
Settings::Settings(Settings&& other) noexcept = default;
Settings& Settings::operator=(Settings&& other) noexcept = default;
Settings::~Settings() = default;

Settings& Settings::set(std::string_view name, const std::string& value) {
  return set(name, std::vector<std::string>{value});
}

Settings& Settings::set(std::string_view name, const std::vector<std::string>& words) {
  const train::Setting& setting = train::find_setting(name);
  train::assign(impl_->config, setting, words);
  impl_->given.insert(setting.name);
  return *this;
}

Settings& Settings::load(const std::string& toml_file) {
  train::read_toml_file(impl_->config, toml_file);
  return *this;
}

std::string Settings::get(std::string_view name) const {
  return train::text_of(impl_->config, train::find_setting(name));
}

std::string Settings::toml() const {
  return train::to_toml(impl_->config);
}

std::vector<std::string> Settings::names() {
  std::vector<std::string> names;
  for (const train::Setting& setting : train::all_settings()) names.emplace_back(setting.name);
  return names;
}

namespace {

const train::TrainConfig& config_of(const Settings& settings) {
  const std::vector<std::string_view> given(settings.impl().given.begin(), settings.impl().given.end());
  train::require_no_contradiction(settings.impl().config, given);
  return settings.impl().config;
}

train::LoadedModel load(const std::string& source, const train::TrainConfig& config) {
  if (config.threads > 0) omp_set_num_threads(static_cast<int>(config.threads));
  return {source, config};
}

}  // namespace

MemoryPlan plan_memory(const Settings& settings, Target target, const PlannedProcess& process) {
  const train::TrainConfig& given = config_of(settings);
  const Device device = target == Target::Cuda ? Device::Cuda : Device::Cpu;
  const model::ModelConfig model = train::resolve_model(given);
  const int world = process.world_size > 0 ? process.world_size : train::model_ranks(given);
  const int first = process.rank.value_or(0);
  require(first >= 0 && first < world, "there is no rank {} among {} processes", first, world);
  const train::TrainConfig config = train::resolved(given, model, device, world);
  const parallel::RunSpec run_spec = train::planned_run_spec(config, model, device, {first, world});
  const plan::RankPlan own =
      process.rank ? plan::plan_rank(run_spec, device) : plan::largest(plan::plan_stages(run_spec, device));
  const plan::Layout reference = plan::plan_layout(plan::at_rank(plan::reference_run_spec(run_spec), own.rank), device);
  MemoryPlan result;
  result.total = own.layout.total;
  result.reference_total = reference.total;
  result.bytes_per_parameter = static_cast<double>(own.layout.model_state()) / static_cast<double>(own.parameters);
  result.rank = own.rank;
  result.stage = own.stage;
  result.world_size = world;
  for (const plan::OwnerPair& row : plan::paired(own.layout, reference))
    result.owners.push_back({row.owner.text(), row.bytes, row.reference});
  return result;
}

TrainingResult train_model(const Settings& settings, const std::function<bool(const TrainingStep&)>& on_step) {
  std::atomic<bool> stop{false};
  int64_t total = config_of(settings).train_iters;
  train::Observer observer;
  observer.on_step = [&](const train::StepMetrics& m) {
    const TrainingStep step{m.step, total, m.loss, m.lr, m.grad_norm, m.step_ms, m.tokens_per_second};
    if (on_step && !on_step(step)) stop = true;
  };
  train::Trainer trainer(config_of(settings), observer);
  const train::Summary s = trainer.run(stop);
  return {s.step,   s.stopped_early,     s.train_loss,          s.valid_loss,
          s.tokens, s.tokens_per_second, s.bytes_per_parameter, s.saved_bytes_per_token_layer};
}

ModelLoss evaluate_model(const std::string& source, const Settings& settings, int64_t max_samples) {
  const train::TrainConfig& config = config_of(settings);
  const train::Evaluation e = load(source, config).evaluate(max_samples);
  return {e.loss, e.perplexity, e.tokens};
}

std::vector<int32_t> generate_tokens(const std::string& source, const std::vector<int32_t>& prompt,
                                     const Sampling& sampling, const std::function<bool(int32_t)>& on_token) {
  train::LoadedModel model = load(source, {});
  return train::generate(model.state(), prompt,
                         {sampling.max_new_tokens, sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed,
                          sampling.stop_tokens},
                         on_token);
}

void export_model(const std::string& source, const std::string& destination, const std::string& dtype) {
  const auto type = dtype_from_name(dtype);
  require(type == DType::BF16 || type == DType::F16 || type == DType::F32, "export to {}: use bf16, fp16 or fp32",
          dtype);
  train::TrainConfig config;
  config.seq_length = 1;  // nothing is computed, so no memory for it
  load(source, config).export_folder(destination, *type);
}

}  // namespace agoq
