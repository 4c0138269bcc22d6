// Which tokenizer a run's tokens belong to: what the data says of itself, and what the model brings.
#pragma once

#include <optional>
#include <string>

#include "train/config.h"

namespace agoq::train {

struct DataDescription {
  std::string tokenizer;   // "byte", or the path of a Hugging Face tokenizer
  int64_t vocab_size = 0;  // of the tokenizer
  int64_t eod_token = -1;  // -1: it has none
  bool operator==(const DataDescription&) const = default;
};

// Plain text is bytes; of Megatron-LM's files PREFIX.json tells, where `agoq data` wrote it. None if nothing is known.
std::optional<DataDescription> describe_data(const std::string& path);

// The tokenizer that comes with a Hugging Face folder: the folder itself, "byte" where an export says so, or empty.
std::string tokenizer_in(const std::string& folder, const model::ModelConfig& model);
// The config.json of an export, saying that its tokens are bytes.
model::ModelConfig marked_as_bytes(model::ModelConfig model);

// Fills tokenizer and end-of-document token, where `config` leaves them open, from the data and from what comes with
// the model (`of_model`, may be empty). An error where they contradict each other, and where the data's tokenizer has
// more tokens than the model.
void settle_tokenizer(TrainConfig& config, const model::ModelConfig& model, const std::string& of_model);

}  // namespace agoq::train
