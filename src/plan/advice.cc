#include "plan/advice.h"

#include <algorithm>

#include "plan/stage_plan.h"

namespace agoq::plan {

std::vector<Advice> advise(const std::vector<Change>& candidates, size_t total, size_t budget, Device target) {
  std::vector<Advice> useful;
  for (const Change& change : candidates) {
    const size_t changed = largest_total(change.run_spec, target);
    if (changed < total) useful.push_back({change.what, change.cost, changed, total - changed, changed <= budget});
  }
  const auto rest = std::stable_partition(useful.begin(), useful.end(), [](const Advice& a) { return a.fits; });
  std::stable_sort(rest, useful.end(), [](const Advice& a, const Advice& b) { return a.saved > b.saved; });
  return useful;
}

int64_t longest_sequence(const parallel::RunSpec& run_spec, Device target, size_t budget, int64_t unit) {
  const auto fits = [&](int64_t units) {
    parallel::RunSpec shorter = run_spec;
    shorter.sequence_length = units * unit;
    return largest_total(shorter, target) <= budget;
  };
  int64_t low = 0,
          high = (run_spec.sequence_length + unit - 1) / unit;  // low fits (or is nothing), high does not count
  while (low + 1 < high) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low * unit;
}

}  // namespace agoq::plan
