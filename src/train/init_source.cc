#include "train/init_source.h"

#include <algorithm>
#include <filesystem>

#include "model/hf_folder.h"
#include "train/checkpoint/run_metadata.h"
#include "train/checkpoint/state_io.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

void require_one(const TrainConfig& c) {
  const int given = !c.model.empty() + !c.model_config.empty() + !c.finetune.empty();
  require(
      given <= 1,
      "--model begins with the weights of a Hugging Face folder, --finetune with those of a run, --model-config with "
      "random ones: give one of them");
  require(given == 1, "no model: give --model FOLDER or --model-config {}, or --finetune RUN",
          fmt::join(model::preset_names(), "|"));
}

void require_apart(const std::string& finetune, const std::string& save) {
  if (save.empty()) return;
  const fs::path source = fs::weakly_canonical(finetune), run = fs::weakly_canonical(save);
  const bool inside = std::mismatch(run.begin(), run.end(), source.begin(), source.end()).first == run.end();
  require(!inside, "--finetune {} lies in --save {}: a fine-tuning run needs a folder of its own; give another --save",
          finetune, save);
}

InitSource source_of_checkpoint(const TrainConfig& c, const std::string& checkpoint) {
  const RunMetadata run = read_metadata(read_checkpoint_manifest(checkpoint), checkpoint);
  return {model::config_from_json(run.model, checkpoint, c.ignore_config_keys),
          {run.settings.tokenizer, run.vocabulary, checkpoint},
          run.model_folder};
}

[[noreturn]] void no_checkpoint(const std::string& finetune) {
  fail(
      "--finetune {}: no checkpoint there; give a run folder, its checkpoints folder or one checkpoint, and give a "
      "Hugging Face folder by --model",
      finetune);
}

// Whether the run was begun with a folder or file that is there no more.
bool is_gone(const TrainConfig& c) {
  std::error_code ignored;
  if (!c.model.empty()) return !fs::exists(c.model, ignored);
  const bool is_path = c.model_config.find('/') != std::string::npos || c.model_config.ends_with(".json");
  return is_path && !fs::exists(c.model_config, ignored);
}

InitSource source_of(const TrainConfig& c) {
  // A run that has begun needs its source no more.
  if (!c.save.empty() && is_gone(c))
    if (const auto checkpoint = find_checkpoint(c.save)) return source_of_checkpoint(c, *checkpoint);
  if (!c.model_config.empty()) return {model::find_config(c.model_config, c.ignore_config_keys), {}, ""};
  if (!c.model.empty()) {
    require(fs::is_directory(c.model), "--model {}: no such folder; presets go with --model-config", c.model);
    const model::ModelConfig model = model::find_config(c.model, c.ignore_config_keys);
    const std::string folder = fs::absolute(c.model).lexically_normal().string();
    return {model, {tokenizer_in(folder, model), "", c.model}, folder};
  }
  require_apart(c.finetune, c.save);
  for (const std::string& source : {c.save, c.finetune})
    if (const auto checkpoint = find_checkpoint(source)) return source_of_checkpoint(c, *checkpoint);
  no_checkpoint(c.finetune);
}

}  // namespace

InitSource find_init_source(const TrainConfig& c) {
  require_one(c);
  require(c.max_position_embeddings >= 0, "--max-position-embeddings must not be negative, it is {}",
          c.max_position_embeddings);
  InitSource source = source_of(c);
  if (c.max_position_embeddings > 0) source.model.max_positions = c.max_position_embeddings;
  return source;
}

model::ModelConfig resolve_model(const TrainConfig& c) {
  return find_init_source(c).model;
}

std::string load_first_weights(const TrainConfig& c, parallel::TrainingState& state, const Readers& readers) {
  if (!c.finetune.empty()) {
    const auto checkpoint = open_checkpoint(c.finetune, readers);
    if (!checkpoint) no_checkpoint(c.finetune);
    load_weights(*checkpoint, state);
    return fmt::format("begins with the weights of {}", checkpoint->path());
  }
  if (c.model.empty())
    state.params().initialize(state.context(), c.seed);
  else
    model::import_weights(state.context(), c.model, state.run_spec().model, state.spec(), state.params());
  return {};
}

}  // namespace agoq::train
