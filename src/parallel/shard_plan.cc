#include "parallel/shard_plan.h"

#include <algorithm>

namespace agoq::parallel {

int64_t slice_rows(int64_t rows, int ranks) {
  return (rows + ranks - 1) / ranks;
}

namespace {

model::Range nth_slice(int64_t rows, int64_t each, int rank) {
  return {std::min(each * rank, rows), std::min(each * (rank + 1), rows)};
}

// Products in bf16 read the upper halves alone, so what makes a weight exact is where it is updated. In fp32 they read
// the exact weight.
Placements placements(Sharding sharding, DType compute) {
  const auto from = [&](Sharding least) { return sharding >= least ? Placement::Shard : Placement::Replicate; };
  Placements by_role{};
  const auto place = [&](Role role, Placement placement) { by_role[static_cast<size_t>(role)] = placement; };
  place(Role::Weight, from(Sharding::Weights));
  place(Role::Master, from(compute == DType::BF16 ? Sharding::Optimizer : Sharding::Weights));
  place(Role::Gradient, from(Sharding::Gradients));
  for (const Role role : {Role::Sum, Role::Moments}) place(role, from(Sharding::Optimizer));
  return by_role;
}

}  // namespace

model::Range row_slice(int64_t rows, int ranks, int rank) {
  return nth_slice(rows, slice_rows(rows, ranks), rank);
}

// A tied embedding gets two contributions of a micro-batch, which would travel one by one: its partial sums are kept.
// Where the ends of the model are different stages, one cannot wait for the other to gather the weight.
ShardPlan::ShardPlan(const model::LayerSpec& spec, const Groups& groups, Sharding sharding, DType compute)
    : spec_(spec), groups_(groups), of_matrices_(placements(sharding, compute)) {
  const bool ends_apart = groups.of(model::Reduction::DataAndEnds).size() > groups.data().size();
  of_tied_ = placements(ends_apart ? std::min(sharding, Sharding::Optimizer) : sharding, compute);
  of_tied_[static_cast<size_t>(Role::Gradient)] = Placement::Replicate;
}

Placement ShardPlan::of(model::Param param, Role role) const {
  const model::ParamRow& row = spec_[param];
  if (row.one_dimensional()) return Placement::Replicate;
  const bool tied = row.reduction == model::Reduction::DataAndEnds;
  return (tied ? of_tied_ : of_matrices_)[static_cast<size_t>(role)];
}

const comm::ProcessGroup& ShardPlan::group(model::Param param, Groups::Channel channel) const {
  return groups_.shards_of(spec_[param].reduction, channel);
}

int64_t ShardPlan::slice(model::Param param) const {
  const int replicas = groups_.replicas().size();
  return slice_rows(slice_rows(spec_[param].rows, group(param).size()), replicas) * replicas;
}

model::Range ShardPlan::rows(model::Param param, Role role, int rank) const {
  const int64_t all = spec_[param].rows;
  return sharded(param, role) ? nth_slice(all, slice(param), rank) : model::Range{0, all};
}

model::Range ShardPlan::rows(model::Param param, Role role) const {
  return rows(param, role, group(param).rank());
}

bool ShardPlan::answers_for(model::Param param, Role role) const {
  return replicas().rank() == 0 && (sharded(param, role) || group(param).rank() == 0);
}

}  // namespace agoq::parallel
