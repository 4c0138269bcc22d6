// What would make a job fit: single changes, each evaluated by a dry run of its own.
#pragma once

#include <string>
#include <vector>

#include "plan/layout.h"

namespace agoq::plan {

// One change to a job. Candidates are listed by rising cost for the user.
struct Change {
  std::string what;  // "--main-grads-dtype int8"
  std::string cost;  // what it costs besides the bytes: "none measured", "a third more compute"
  parallel::RunSpec run_spec;
};

struct Advice {
  std::string what, cost;
  size_t total = 0;  // bytes with this change, of the rank that holds the most
  size_t saved = 0;  // less than without it
  bool fits = false;
};

// The changes that save memory: those that make the job fit into `budget` in their given order (so the cheapest first),
// then the others by falling savings. `total` is what the job's largest rank needs unchanged.
std::vector<Advice> advise(const std::vector<Change>& candidates, size_t total, size_t budget, Device target);

// The longest sequence, a multiple of `unit` below the job's own, that fits into `budget`; 0 if none does.
int64_t longest_sequence(const parallel::RunSpec& run_spec, Device target, size_t budget, int64_t unit);

}  // namespace agoq::plan
