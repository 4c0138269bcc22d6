// From the configuration to batches, and from batches to what the model takes.
#pragma once

#include "train/config/config.h"
#include "train/data/dataset.h"

namespace agoq::train {

// Of settings whose tokenizer is settled (train/data/tokenizer_choice.h).
BatchSpec batch_spec(const TrainConfig& config, const model::ModelConfig& model);
DataConfig data_config(const TrainConfig& config);
// A view of a batch's arrays.
parallel::MicroBatch view(Batch& batch);

}  // namespace agoq::train
