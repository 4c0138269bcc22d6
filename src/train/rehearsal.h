// Before step 0 on a GPU: libraries load what they load, and choose their kernels.
#pragma once

#include "parallel/training_state.h"

namespace agoq::train {

// Runs every op once on invented tokens (TrainingState::rehearse); on the CPU there is nothing to prepare. Unless the
// job is deterministic, GEMM algorithms are chosen by timing: what is fastest may differ from one start to the next,
// and with it the bits.
void rehearse(parallel::TrainingState& state);

}  // namespace agoq::train
