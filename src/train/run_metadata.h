// What a checkpoint says about the run beside its tensors: how far it is, and what must not change when it goes on.
#pragma once

#include <string>

#include "train/config.h"

namespace agoq::train {

struct RunMetadata {
  int64_t updates = 0;  // of the optimizer, for bias correction
  int64_t skipped = 0, skipped_in_a_row = 0;
  uint64_t tokens = 0;
  std::string identity;  // JSON: model, data, batch, seed, storage formats; a resumed run must agree
  std::string model;     // JSON: config.json of the model
  std::string settings;  // JSON: what evaluation, generation and export need of the run's configuration
};

std::string identity_json(const TrainConfig& config, const model::ModelConfig& model, const std::string& data_identity);
std::string settings_json(const TrainConfig& config);
// Takes over what `settings_json` wrote: precision of the stored weights, sequence length, tokenizer, source folder.
void apply_settings(const std::string& settings, TrainConfig& config);

std::string to_json(const RunMetadata& metadata);
RunMetadata metadata_from_json(const std::string& text, const std::string& file);

}  // namespace agoq::train
