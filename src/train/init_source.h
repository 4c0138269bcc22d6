// Where a run begins: with random weights, those of a Hugging Face folder, or those of an earlier run.
#pragma once

#include <string>

#include "parallel/training_state.h"
#include "train/checkpoint/checkpoint.h"
#include "train/config/config.h"
#include "train/data/tokenizer_choice.h"

namespace agoq::train {

struct InitSource {
  model::ModelConfig model;
  ModelTokens tokens;
  std::string model_folder;  // Hugging Face folder whose tokenizer, chat template, ... exports carry; empty: none
};

// What is known before any weight is read. Refuses a fine-tuning run in the folder of the run that it begins with.
InitSource find_init_source(const TrainConfig& config);
// The model this run trains (from `model`, `model_config` or `finetune`).
model::ModelConfig resolve_model(const TrainConfig& config);

// Gives the state its first weights, on all ranks that read together. Returns a line for people, or nothing.
std::string load_first_weights(const TrainConfig& config, parallel::TrainingState& state, const Readers& readers = {});

}  // namespace agoq::train
