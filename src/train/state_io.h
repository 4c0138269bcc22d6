// Where checkpoints and a training state meet.
#pragma once

#include <vector>

#include "parallel/training_state.h"
#include "train/checkpoint.h"

namespace agoq::train {

// What a checkpoint holds of the state, by logical name.
std::vector<NamedTensor> tensors_of(parallel::TrainingState& state);

// The weights alone. A checkpoint and a model both hold exact fp32, whole or as bf16 with a correction: either form
// fills either, bit for bit, whatever the compute type. Everything is verified before the first weight changes.
void load_weights(const Checkpoint& checkpoint, parallel::TrainingState& state);

// Weights, and moments in the formats in which the state holds them: codes stay codes.
void load_state(const Checkpoint& checkpoint, parallel::TrainingState& state);

}  // namespace agoq::train
