// Single settings that make a run smaller, in the words of its user.
#pragma once

#include <vector>

#include "plan/advice.h"
#include "train/config.h"

namespace agoq::train {

// `config` is resolved. Listed by rising cost: precision that costs nothing measurable, activations, recomputation,
// smaller batches, shorter sequences; what the run has already is left out.
std::vector<plan::Advice> memory_advice(const TrainConfig& config, const model::ModelConfig& model, size_t budget,
                                        Device target);

}  // namespace agoq::train
