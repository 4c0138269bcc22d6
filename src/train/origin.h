// Where a run begins: with random weights, those of a Hugging Face folder, or those of an earlier run.
#pragma once

#include <string>

#include "parallel/training_state.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/tokenizer.h"

namespace agoq::train {

struct Origin {
  model::ModelConfig model;
  ModelTokens tokens;
  std::string model_folder;  // Hugging Face folder whose tokenizer, chat template, ... exports carry; empty: none
};

// What is known before any weight is read. Refuses a fine-tuning run in the folder of the run that it begins with.
Origin find_origin(const TrainConfig& config);

// Gives the state its first weights, on all ranks that read together. Returns a line for people, or nothing.
std::string load_first_weights(const TrainConfig& config, parallel::TrainingState& state, const Readers& readers = {});

}  // namespace agoq::train
