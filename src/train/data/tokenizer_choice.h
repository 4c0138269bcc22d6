// Which tokenizer a run's tokens belong to: what the data says of itself, and what the model brings.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "train/config/config.h"

namespace agoq::train {

class Coordinator;

struct DataDescription {
  std::string tokenizer;                 // "byte", or the path of a Hugging Face tokenizer
  int64_t vocab_size = 0;                // of the tokenizer
  int64_t eod_token = -1;                // -1: it has none
  std::string vocabulary = {};           // its hash (train/data/vocabulary.h); empty: not told
  std::optional<bool> prepend_bos = {};  // whether documents begin with the bos token; none: not told
  bool operator==(const DataDescription&) const = default;
};

// Plain text is bytes; of Megatron-LM's files PREFIX.json tells, where `agoq data` wrote it. None if nothing is known.
std::optional<DataDescription> describe_data(const std::string& path);

// The tokenizer that comes with a Hugging Face folder: the folder itself, "byte" where an export says so, or empty.
std::string tokenizer_in(const std::string& folder, const model::ModelConfig& model);
// The model with a config.json in which this token alone ends texts (-1: none does).
model::ModelConfig ending_with(model::ModelConfig model, int64_t eos);
// The config.json of an export, saying that its tokens are bytes.
model::ModelConfig marked_as_bytes(model::ModelConfig model);

// Whose tokens a model has learned.
struct ModelTokens {
  std::string tokenizer;   // that comes with the model; empty: nothing tells
  std::string vocabulary;  // its hash, as a run recorded it; empty: the tokenizer's files tell
  std::string model;       // where the weights come from; empty: they are random, and learn any tokens
};

struct SettledTokenizer {
  std::string vocabulary;  // hash; empty: not known
  std::string warning;     // about data or a model that does not tell whose tokens it holds; or empty
  bool own_tokens = true;  // false: a model learns another vocabulary, in which its own eos ids are ordinary tokens
};

// Fills tokenizer, end-of-document token and how prompts begin, where `config` leaves them open, from the data and from
// what comes with the model. An error that names both where data of two vocabularies meet, or data and a model of two;
// where text would be taken for bytes although the model has learned unknown tokens; and where the data's tokenizer has
// more tokens than the model. With --tokenizer, a model that is trained may learn the tokens of another vocabulary.
SettledTokenizer settle_tokenizer(TrainConfig& config, const model::ModelConfig& model, const ModelTokens& of_model);

// Whether `tokenizer` and that of the model's folder are both known, and differ.
bool know_other_tokens(const std::string& tokenizer, const std::string& model_folder);

// A finished model is only asked in its own tokens: an error if --tokenizer names others.
void require_own_tokens(const TrainConfig& config, const ModelTokens& of_model);

// The tokens that end a generated text: the end of a document, and every eos of the model's config.json and of
// generation_config.json in `folder` (may be empty). Of settings whose tokenizer is settled.
std::vector<int32_t> stop_tokens(const TrainConfig& config, const model::ModelConfig& model, const std::string& folder);
// Rank 0's, on all ranks: their machines may hold different files. All ranks call it.
std::vector<int32_t> common_stop_tokens(const Coordinator& coordinator, const TrainConfig& config,
                                        const model::ModelConfig& model, const std::string& folder);

}  // namespace agoq::train
