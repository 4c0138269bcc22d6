// Who holds which rows of a parameter, for each role. What allocates, exchanges, updates, gathers, counts or saves rows
// asks here; nothing else knows it (design 5). The tensor cut (model/layer_spec.h) comes first: rows are those of this
// rank's shard, and they are placed over the ranks of the parameter's reduction group.
#pragma once

#include "parallel/groups.h"

namespace agoq::parallel {

enum class Role : uint8_t {
  Weight,    // what products read
  Master,    // the exact weight: corrections, or fp32 beside bf16
  Gradient,  // the sum over the group, which the update reads; each rank's own partial sum has all rows
  Moments    // of what a rank updates
};
inline constexpr size_t kRoles = 4;

enum class Placement : uint8_t {
  Replicate,  // every rank has all rows
  Shard       // every rank has a slice
};

// Equal slices of whole rows, so that no block falls apart; the last ones may be shorter, or empty.
int64_t slice_rows(int64_t rows, int ranks);
model::Range row_slice(int64_t rows, int ranks, int rank);

class ShardPlan {
 public:
  // `compute`: of products. Both outlive the plan.
  ShardPlan(const model::LayerSpec& spec, const Groups& groups, bool shard_optimizer, DType compute);

  // A vector is replicated in every role.
  Placement of(model::Param param, Role role) const;
  bool sharded(model::Param param, Role role) const { return of(param, role) == Placement::Shard; }
  // The ranks over which a parameter is placed: those that hold partial sums of its gradient.
  const comm::ProcessGroup& group(model::Param param) const;
  // Rows of one slice; all slices together may have more than the parameter.
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
  std::array<Placement, kRoles> of_matrices_{};  // by role
};

}  // namespace agoq::parallel
