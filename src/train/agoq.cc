#include "agoq/agoq.h"

#include <omp.h>

#include <atomic>

#include "plan/comparison.h"
#include "train/inference.h"
#include "train/settings.h"
#include "train/trainer.h"

namespace agoq {

struct Settings::Impl {
  train::TrainConfig config;
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
  train::assign(impl_->config, train::find_setting(name), {value});
  return *this;
}

Settings& Settings::set(std::string_view name, const std::vector<std::string>& words) {
  train::assign(impl_->config, train::find_setting(name), words);
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
  return settings.impl().config;
}

train::LoadedModel load(const std::string& source, const train::TrainConfig& config) {
  if (config.threads > 0) omp_set_num_threads(static_cast<int>(config.threads));
  return {source, config};
}

}  // namespace

MemoryPlan plan_memory(const Settings& settings, Target target) {
  const train::TrainConfig& given = config_of(settings);
  const Device device = target == Target::Cuda ? Device::Cuda : Device::Cpu;
  const model::ModelConfig model = train::resolve_model(given);
  const parallel::Job job = train::make_job(train::resolved(given, model, device), model);
  const plan::Layout layout = plan::plan_layout(job, device);
  const plan::Layout reference = plan::plan_layout(plan::reference_job(job), device);
  MemoryPlan result{{},
                    layout.total,
                    reference.total,
                    static_cast<double>(layout.model_state()) / static_cast<double>(model.parameters())};
  for (const plan::OwnerPair& row : plan::paired(layout, reference))
    result.owners.push_back({row.owner, row.bytes, row.reference});
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
                          sampling.stop_token},
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
