// What a process holds of a parameter and its moments, as pieces of logical tensors: what checkpoints save and fill.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/stored_tensor.h"
#include "model/delayed_scales.h"
#include "model/parameters.h"
#include "ops/optimizer/adamw.h"

namespace agoq::parallel {

// What the names of stored tensors begin with; the parameter's name follows. Here alone: checkpoints read and write by
// these.
inline constexpr std::string_view kStoredWeights = "weights/", kStoredCorrections = "corrections/";
inline constexpr std::string_view kStoredMoments[] = {"exp_avg", "exp_avg_sq"};  // before ".codes/" and ".scales/"
inline constexpr std::string_view kStoredAmaxes = "amax_history/";               // before "layers.0"
// "layers.0.qkv" of a tensor that belongs to a weight; otherwise nothing.
std::string_view stored_param(std::string_view tensor);
bool is_stored_moment(std::string_view tensor);

struct HeldParameter {
  ops::Weight weight;
  model::Range rows;       // of this rank's shard that it has
  model::ExactRows exact;  // those that it keeps exactly
  model::Range updated;    // the rows that it updates, and has moments of
  model::Range saved;      // those for which it answers in a checkpoint; what else it holds are replicas
  const ops::AdamWState* state = nullptr;  // null where it updates none
};

// Adds weights, corrections and moments of parameter NAME as far as they are here: "weights/NAME", ...
void add_stored(std::vector<StoredTensor>& all, const std::string& name, const model::ParamRow& row,
                const HeldParameter& held);

// Adds the amax history of each layer: "amax_history/layers.0", ... As `replica` if another rank saves the same.
void add_stored(std::vector<StoredTensor>& all, const model::DelayedScales& scales, bool replica);

}  // namespace agoq::parallel
