// Before step 0 on a GPU: libraries load what they load, and choose their kernels.
#pragma once

#include "parallel/training_state.h"
#include "train/coordinator.h"

namespace agoq::train {

// Runs every op once on invented tokens (TrainingState::dry_run); on the CPU there is nothing to prepare. Unless the
// job is deterministic, GEMM algorithms are chosen by timing: what is fastest may differ from one start to the next,
// and with it the bits. All ranks agree on the choices and save them.
void warm_up(parallel::TrainingState& state, const Coordinator& coordinator);

// Before attention is called on a GPU: error if its library computes something else than our own kernels
// (ops/attention/attention_check.h). `packed`: batches may have several documents in a sequence.
void check_attention(parallel::TrainingState& state, bool packed);

}  // namespace agoq::train
