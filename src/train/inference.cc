#include "train/inference.h"

#include <cmath>
#include <filesystem>

#include "base/log.h"
#include "device/memory.h"
#include "model/hf_folder.h"
#include "plan/layout.h"
#include "train/checkpoint/run_metadata.h"
#include "train/checkpoint/state_io.h"
#include "train/data/dataset.h"
#include "train/data/micro_batch.h"
#include "train/data/tokenizer_choice.h"
#include "train/held_out.h"
#include "train/run_companions.h"
#include "train/warm_up.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

}  // namespace

class LoadedModel::Impl {
 public:
  Impl(const std::string& source, TrainConfig given) : config(std::move(given)) {
    require(fs::is_directory(source), "{}: no such folder; give a Hugging Face folder, a run folder or a checkpoint",
            source);
    const std::optional<Checkpoint> checkpoint = open_checkpoint(source);
    if (!checkpoint) {
      require(
          fs::exists(fs::path(source) / "config.json"),
          "{}: neither a run folder with checkpoints, nor a checkpoint, nor a Hugging Face folder with a config.json",
          source);
      model_folder = source;
      model = model::find_config(source, config.ignore_config_keys);
      make_state({tokenizer_in(source, model), "", source});
      model::import_weights(state->context(), source, state->run_spec().model, state->spec(), state->params());
      return;
    }
    const RunMetadata metadata = read_metadata(checkpoint->manifest(), checkpoint->path());
    inherit(config, metadata.settings);
    model_folder = metadata.model_folder;
    model = model::config_from_json(metadata.model, checkpoint->path(), config.ignore_config_keys);
    make_state({metadata.settings.tokenizer, metadata.vocabulary, source});
    load_weights(*checkpoint, *state);
  }

  void make_state(const ModelTokens& tokens) {
    const Device device = resolve_device(config.device);
    config = resolved(config, model, device);
    require_own_tokens(config, tokens);
    const SettledTokenizer settled = settle_tokenizer(config, model, tokens);
    if (!settled.warning.empty()) log_warning("{}", settled.warning);
    parallel::RunSpec run_spec = make_run_spec(config, model);
    run_spec.training = false;
    Arena& arena = memory.emplace(device).reserve(plan::plan_layout(run_spec, device).total);
    state = std::make_unique<parallel::TrainingState>(arena, device, run_spec);
    check_attention(*state, /*packed=*/true);  // a prompt shorter than a sequence counts as packed
  }

  TrainConfig config;
  model::ModelConfig model;
  std::string model_folder;  // Hugging Face folder, or empty
  std::optional<DeviceMemory> memory;
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
  const std::string& folder = impl_->model_folder;
  if (folder.empty() || fs::is_directory(folder)) return folder;
  log_warning("the model folder {} is gone, and with it tokenizer, chat template and generation config", folder);
  return {};
}

std::vector<int32_t> LoadedModel::stop_tokens() const {
  return train::stop_tokens(impl_->config, impl_->model, impl_->model_folder);
}

Evaluation LoadedModel::evaluate(int64_t max_samples) {
  const BatchSpec spec = batch_spec(impl_->config, impl_->model);
  const Dataset dataset = open_evaluation_dataset(data_config(impl_->config), spec);
  for (const std::string& warning : dataset.warnings()) log_warning("{}", warning);
  const int64_t samples = max_samples > 0 ? std::min<int64_t>(max_samples, static_cast<int64_t>(dataset.samples()))
                                          : static_cast<int64_t>(dataset.samples());
  dataset.require_targets(static_cast<uint64_t>(samples));
  Evaluation result;
  result.loss = held_out_loss(*impl_->state, dataset, samples, &result.tokens);
  result.perplexity = std::exp(result.loss);
  return result;
}

std::string LoadedModel::export_folder(const std::string& destination, DType dtype) {
  const std::string source = source_folder();
  std::error_code ignored;
  require(source.empty() || !fs::equivalent(destination, source, ignored),
          "cannot export to {}: the model's tokenizer and config come from there; name another folder", destination);
  const model::Companions companions = companions_of(impl_->config.tokenizer, source);
  const model::ModelConfig& plain = impl_->state->run_spec().model;
  const bool bytes = impl_->config.tokenizer == kByteTokenizer;
  model::export_folder(impl_->state->context(), destination, bytes ? marked_as_bytes(plain) : plain,
                       impl_->state->spec(), impl_->state->params(), dtype, companions);
  return model::names_of(companions);
}

}  // namespace agoq::train
