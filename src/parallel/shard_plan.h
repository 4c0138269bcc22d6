// Who holds which rows of a parameter, for each role. What allocates, exchanges, updates, gathers, counts or saves rows
// asks here; nothing else knows it (design 5). The tensor cut (model/layer_spec.h) comes first: rows are those of this
// rank's shard, and they are placed over the ranks of the parameter's reduction group, along the data axis: ranks that
// differ along the replica axis hold the same.
#pragma once

#include "parallel/groups.h"

namespace agoq::parallel {

enum class Role : uint8_t {
  Weight,    // what products read, while they do not
  Master,    // the exact weight: corrections, or fp32 beside bf16
  Gradient,  // what micro-batches add up in. Replicate: each rank's own partial sum. Shard: the sum over the ranks
  Sum,       // the sum over the ranks, which the update reads
  Moments    // of what a rank updates
};
inline constexpr size_t kRoles = 5;

enum class Placement : uint8_t {
  Replicate,  // every rank has all rows
  Shard       // every rank has a slice
};

using Placements = std::array<Placement, kRoles>;  // by role

// Equal slices of whole rows, so that no block falls apart; the last ones may be shorter, or empty.
int64_t slice_rows(int64_t rows, int ranks);
model::Range row_slice(int64_t rows, int ranks, int rank);

class ShardPlan {
 public:
  // `compute`: of products. `spec` and `groups` outlive the plan.
  ShardPlan(const model::LayerSpec& spec, const Groups& groups, Sharding sharding, DType compute);

  // A vector is replicated in every role.
  Placement of(model::Param param, Role role) const;
  bool sharded(model::Param param, Role role) const { return of(param, role) == Placement::Shard; }
  // The ranks over which a parameter is placed: those that hold partial sums of its gradient, of one replica.
  const comm::ProcessGroup& group(model::Param param, Groups::Channel channel = Groups::Channel::Common) const;
  // Those that hold the same rows and sum them once more; this process alone if there are no replicas.
  const comm::ProcessGroup& replicas() const { return groups_.replicas(); }
  // All ranks that hold partial sums of a gradient.
  const comm::ProcessGroup& all(model::Param param) const { return groups_.of(spec_[param].reduction); }
  // Rows of one slice, which replicas can divide; all slices together may have more than the parameter.
  int64_t slice(model::Param param) const;
  // What a rank of the group has, and what this process has.
  model::Range rows(model::Param param, Role role, int rank) const;
  model::Range rows(model::Param param, Role role) const;
  // Whether this process answers for its rows, in the global norm and in a checkpoint: of ranks that have the same, the
  // first does.
  bool answers_for(model::Param param, Role role) const;

 private:
  const model::LayerSpec& spec_;
  const Groups& groups_;
  Placements of_matrices_{}, of_tied_{};
};

}  // namespace agoq::parallel
