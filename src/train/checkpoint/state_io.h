// Where checkpoints and a training state meet.
#pragma once

#include <span>
#include <string>

#include "parallel/training_state.h"
#include "train/checkpoint/checkpoint.h"

namespace agoq::train {

// Fills every "weights/..." and "corrections/..." among the tensors (others are passed over), each with what its type
// holds of the exact fp32 numbers: fp32 all of them, bf16 the high half, int16 the correction. The checkpoint holds
// them whole, or as bf16 with a correction: either form fills either, bit for bit. Everything is verified before the
// first weight changes.
void load_weights(const Checkpoint& checkpoint, const Context& ctx, std::span<const StoredTensor> tensors);

// The weights alone, whatever the compute type.
void load_weights(const Checkpoint& checkpoint, parallel::TrainingState& state);

// Weights, moments in the formats in which the state holds them (codes stay codes), and amax histories, as many steps
// as both know of. Returns what is to be told: that there are none, say.
std::string load_state(const Checkpoint& checkpoint, parallel::TrainingState& state);

}  // namespace agoq::train
