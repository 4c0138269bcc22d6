// Two layouts side by side: AGoQ's bytes and those of unquantized training, owner by owner.
#pragma once

#include <vector>

#include "plan/layout.h"

namespace agoq::plan {

struct OwnerPair {
  Owner owner;
  size_t bytes = 0, reference = 0;
};

// All owners of both, in the order of the first; those that only the reference has stand behind their neighbours there.
std::vector<OwnerPair> paired(const Layout& layout, const Layout& reference);

}  // namespace agoq::plan
