// From the configuration to batches, and from batches to what the model takes.
#pragma once

#include "train/config.h"
#include "train/dataset.h"

namespace agoq::train {

// Of settings whose tokenizer is settled (train/tokenizer.h).
BatchSpec batch_spec(const TrainConfig& config, const model::ModelConfig& model);
DataConfig data_config(const TrainConfig& config);
// A view of a batch's arrays.
parallel::MicroBatch view(Batch& batch);

// Loss in nats per counted token over the first `samples` samples in order, in micro-batches; the number of counted
// tokens goes to `tokens` if given.
double held_out_loss(parallel::TrainingState& state, const Dataset& dataset, int64_t micro_batches, int64_t samples,
                     double* tokens = nullptr);

}  // namespace agoq::train
