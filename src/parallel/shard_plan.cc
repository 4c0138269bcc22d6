#include "parallel/shard_plan.h"

#include <algorithm>

namespace agoq::parallel {

int64_t slice_rows(int64_t rows, int ranks) {
  return (rows + ranks - 1) / ranks;
}

model::Range row_slice(int64_t rows, int ranks, int rank) {
  const int64_t each = slice_rows(rows, ranks);
  return {std::min(each * rank, rows), std::min(each * (rank + 1), rows)};
}

// Products in bf16 read the upper halves alone, so what makes a weight exact is where it is updated. In fp32 they read
// the exact weight.
ShardPlan::ShardPlan(const model::LayerSpec& spec, const Groups& groups, bool shard_optimizer, DType compute)
    : spec_(spec), groups_(groups) {
  const Placement updated = shard_optimizer ? Placement::Shard : Placement::Replicate;
  for (const Role role : {Role::Gradient, Role::Moments}) of_matrices_[static_cast<size_t>(role)] = updated;
  if (compute == DType::BF16) of_matrices_[static_cast<size_t>(Role::Master)] = updated;
}

Placement ShardPlan::of(model::Param param, Role role) const {
  return spec_[param].one_dimensional() ? Placement::Replicate : of_matrices_[static_cast<size_t>(role)];
}

const comm::ProcessGroup& ShardPlan::group(model::Param param) const {
  return groups_.of(spec_[param].reduction);
}

int64_t ShardPlan::slice(model::Param param) const {
  return slice_rows(spec_[param].rows, group(param).size());
}

model::Range ShardPlan::rows(model::Param param, Role role, int rank) const {
  const int64_t all = spec_[param].rows;
  return sharded(param, role) ? row_slice(all, group(param).size(), rank) : model::Range{0, all};
}

model::Range ShardPlan::rows(model::Param param, Role role) const {
  return rows(param, role, group(param).rank());
}

bool ShardPlan::answers_for(model::Param param, Role role) const {
  return sharded(param, role) || group(param).rank() == 0;
}

}  // namespace agoq::parallel
