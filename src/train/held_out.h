// The loss on data that is not trained on.
#pragma once

#include <string>

#include "parallel/training_state.h"
#include "train/coordinator.h"
#include "train/data/dataset.h"

namespace agoq::train {

// Loss in nats per counted token over the first `samples` samples in order, in micro-batches; the number of counted
// tokens goes to `tokens` if given.
double held_out_loss(parallel::TrainingState& state, const Dataset& dataset, int64_t samples, double* tokens = nullptr);

struct HeldOut {
  double loss = 0;
  std::string problem;  // why there is none; the same on all ranks
};
// The same in a run, where a failure is an answer. What a rank alone can fail in, reading, is done before the ranks
// wait for each other. Throws only for what ends the run anyway: a peer that is gone.
HeldOut measure_held_out(const Coordinator& coordinator, parallel::TrainingState& state, const Dataset& dataset,
                         int64_t samples);

}  // namespace agoq::train
