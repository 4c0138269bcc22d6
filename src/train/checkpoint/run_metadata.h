// What a checkpoint says about the run beside its tensors: how far it is, and what must not change when it goes on.
#pragma once

#include <string>

#include "train/checkpoint/manifest.h"
#include "train/config/config.h"
#include "train/data/dataset.h"

namespace agoq::train {

struct RunMetadata {
  int64_t updates = 0;  // of the optimizer, for bias correction
  int64_t skipped = 0, skipped_in_a_row = 0;
  int64_t without_targets = 0;  // of the skipped
  uint64_t tokens = 0;
  int64_t iters_before_fit = 0;  // train_iters before --train-minutes chose those of `settings`; 0: it has not
  std::string identity;          // JSON: identity_json; a resumed run must agree
  std::string model;             // JSON: config.json of the model
  std::string
      gemm_algorithms;       // JSON: which kernels a GPU's matrix products use (ops/linear/gemm_algorithms.h); or empty
  TrainConfig settings;      // resolved, with absolute paths
  std::string model_folder;  // Hugging Face folder of the first weights, for what exports carry beside them; or empty
  std::string vocabulary;    // hash of the tokenizer's (train/data/vocabulary.h); empty: not known
};

// What makes a run this run: the architecture, the data and its order, what a step consists of, the seed, and the
// formats of the stored moments, whose codes are kept as codes. All else may change when it goes on: the schedule, how
// activations and gradients are kept, the compute type, micro-batches, names of files, what is written and when.
std::string identity_json(const TrainConfig& config, const model::ModelConfig& model, const Dataset& data);

// Whether the run of this identity reads documents as runs did that began before an .idx divided them: its end token
// ends them everywhere.
bool ends_documents_by_token(const std::string& identity);
// An identity that was saved when only samples of the data were compared, with what is compared now in the place of
// samples that match the data. What does not match stays, and differs.
std::string with_whole_contents(const std::string& identity, const Dataset& data);
// A run that goes on resets positions and attention as it did, unless `config` says otherwise.
void keep_document_settings(TrainConfig& config, const TrainConfig& run);

// Fills what `config` leaves open from the settings of the run that is read: sequence length, precision of the weights,
// and how data is cut into documents.
void inherit(TrainConfig& config, const TrainConfig& run);

// Where a file or folder lies that a run used: where it was or, if it was moved together with the run folder, as far
// from it as then; what lay in the run folder is looked for in that first. The path as it was if it is nowhere.
std::string find_moved(const std::string& path, const std::string& run_folder_then, const std::string& run_folder_now);

std::string to_json(const RunMetadata& metadata);
// `file` is for messages.
RunMetadata metadata_from_json(const std::string& text, const std::string& file);
// Of a checkpoint, with the places that it names where they are now (find_moved).
RunMetadata read_metadata(const Manifest& manifest, const std::string& checkpoint);

}  // namespace agoq::train
