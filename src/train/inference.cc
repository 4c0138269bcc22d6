#include "train/inference.h"

#include <cmath>
#include <filesystem>

#include "model/hf_folder.h"
#include "plan/layout.h"
#include "train/checkpoint.h"
#include "train/dataset.h"
#include "train/micro_batch.h"
#include "train/run_metadata.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

// The checkpoint that a run folder, a checkpoints folder or a checkpoint folder stands for; empty for a Hugging Face
// folder.
std::string checkpoint_of(const std::string& source) {
  require(fs::is_directory(source), "{}: no such folder; give a Hugging Face folder, a run folder or a checkpoint",
          source);
  if (fs::exists(fs::path(source) / "manifest.json")) return source;
  for (const fs::path& folder : {fs::path(source) / "checkpoints", fs::path(source)})
    if (fs::is_directory(folder))
      if (const auto latest = find_latest_checkpoint(folder.string())) return *latest;
  return {};
}

std::vector<NamedTensor> weights_of(parallel::TrainingState& state) {
  std::vector<NamedTensor> tensors;
  for (auto& [name, tensor] : state.named_tensors()) tensors.push_back({name, tensor});
  return tensors;
}

}  // namespace

class LoadedModel::Impl {
 public:
  Impl(const std::string& source, TrainConfig given) : config(std::move(given)) {
    const std::string folder = checkpoint_of(source);
    if (folder.empty()) {
      config.model = source;
      config.model_config.clear();
      model = resolve_model(config);
      make_state();
      model::import_weights(source, state->job().model, state->spec(), state->params());
      return;
    }
    const Checkpoint checkpoint(folder);
    const RunMetadata metadata = metadata_from_json(checkpoint.manifest().metadata, folder);
    apply_settings(metadata.settings, config);
    model = model::config_from_json(metadata.model, folder);
    make_state();
    load_checkpoint(checkpoint, weights_of(*state), {.subset = true});
  }

  void make_state() {
    config = resolved(config, model, resolve_device(config.device));
    parallel::Job job = make_job(config, model);
    job.training = false;
    arena.emplace(Device::Cpu, plan::plan_layout(job, Device::Cpu).total);
    state = std::make_unique<parallel::TrainingState>(*arena, Device::Cpu, job);
  }

  TrainConfig config;
  model::ModelConfig model;
  std::optional<Arena> arena;
  std::unique_ptr<parallel::TrainingState> state;
};

LoadedModel::LoadedModel(const std::string& source, TrainConfig config)
    : impl_(std::make_unique<Impl>(source, std::move(config))) {}
LoadedModel::~LoadedModel() = default;

parallel::TrainingState& LoadedModel::state() {
  return *impl_->state;
}
const model::ModelConfig& LoadedModel::model() const {
  return impl_->model;
}
const TrainConfig& LoadedModel::config() const {
  return impl_->config;
}
std::string LoadedModel::source_folder() const {
  return impl_->config.model;
}

Evaluation LoadedModel::evaluate(const std::vector<std::string>& data_path, int64_t max_samples) {
  const BatchSpec spec = batch_spec(impl_->config, impl_->model);
  DataConfig data = data_config(impl_->config);
  data.data_path = data_path;
  const Dataset dataset = open_evaluation_dataset(data, spec);
  const int64_t samples = max_samples > 0 ? std::min<int64_t>(max_samples, static_cast<int64_t>(dataset.samples()))
                                          : static_cast<int64_t>(dataset.samples());
  Evaluation result;
  result.loss = held_out_loss(*impl_->state, dataset, (samples + spec.micro_batch_size - 1) / spec.micro_batch_size,
                              samples, &result.tokens);
  result.perplexity = std::exp(result.loss);
  return result;
}

void LoadedModel::export_folder(const std::string& destination, DType dtype) {
  model::export_folder(destination, impl_->state->job().model, impl_->state->spec(), impl_->state->params(), dtype,
                       source_folder());
}

}  // namespace agoq::train
