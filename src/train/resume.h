// What a run must keep when it goes on from a checkpoint.
#pragma once

#include <string>

#include "train/checkpoint/run_metadata.h"

namespace agoq::train {

// Error, with what differs, if the checkpoint at `path` is of another run than the one that `config` describes: other
// first weights, model, data, order or tokens. `identity`: of this run (identity_json). `vocabulary`: hash of the
// tokenizer's; empty: not known.
void require_same_run(const std::string& path, const RunMetadata& metadata, const TrainConfig& config,
                      const Dataset& data, const std::string& identity, const std::string& vocabulary);

// A run keeps the number of steps that --train-minutes chose for it, unless the command asks for something else than it
// did then. Whether it does.
bool keep_fitted_schedule(TrainConfig& config, const RunMetadata& metadata);

// A longer run decays as it began: the learning rate must not jump up where it was resumed. A line for people if steps
// lie behind the end of the decay, or nothing.
std::string keep_decay(TrainConfig& config, const TrainConfig& begun);

}  // namespace agoq::train
