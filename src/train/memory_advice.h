// Single settings that make a run smaller, in the words of its user.
#pragma once

#include <vector>

#include "plan/advice.h"
#include "train/config/config.h"

namespace agoq::train {

// `config` is resolved for a run of `world` processes. Listed by rising cost: precision that costs nothing measurable,
// activations, recomputation, smaller batches, shorter sequences, more processes (`agoq plan` has a flag for their
// number); what the run has already is left out, and so is what the model cannot be divided into.
std::vector<plan::Advice> memory_advice(const TrainConfig& config, const model::ModelConfig& model, int world,
                                        size_t budget, Device target);

}  // namespace agoq::train
