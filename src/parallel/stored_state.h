// What a process holds of a parameter and its moments, as pieces of logical tensors: what checkpoints save and fill.
#pragma once

#include <string>
#include <vector>

#include "base/stored_tensor.h"
#include "model/parameters.h"
#include "ops/optimizer/adamw.h"

namespace agoq::parallel {

struct HeldParameter {
  ops::Weight weight;      // all rows of this rank's shard
  model::ExactRows exact;  // the rows of it that it keeps exactly
  model::Range updated;    // the rows that it updates, and has moments of
  model::Range saved;      // those for which it answers in a checkpoint; what else it holds are replicas
  const ops::AdamWState* state = nullptr;  // null where it updates none
};

// Adds "weights/NAME", "corrections/NAME", "exp_avg.codes/NAME", ... as far as they are here.
void add_stored(std::vector<StoredTensor>& all, const std::string& name, const model::ParamRow& row,
                const HeldParameter& held);

}  // namespace agoq::parallel
