// What each stage of a pipeline holds, and the widths in which it keeps activations so that none holds more than the
// first (DBCA-PP, design 5; docs/pipeline.md).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "plan/layout.h"

namespace agoq::plan {

// `run_spec` with a recipe in which each stage behind the first keeps its norm and MLP inputs in the widths of least
// error with which it needs no more memory than the first (or than its own recipe, if that is more already). A layer
// has one stage, so the recipe is the same on all ranks: those of a tensor group exchange the codes that they keep.
// Unchanged where run_spec.parallelism asks for no widths of stages, or has one stage. `target` as in plan_layout.
parallel::RunSpec with_stage_widths(const parallel::RunSpec& run_spec, Device target);

struct RankPlan {
  int rank = 0, stage = 0;
  std::vector<parallel::LayerRange> chunks;  // layers
  int64_t parameters = 0;                    // of these and of the ends that lie here
  int in_flight = 0;                         // activations of one chunk and one micro-batch, the most at a time
  std::string widths;                        // how many layers keep norm and MLP inputs in which codec
  Layout layout;
  parallel::Traffic sent;  // in a step
};

parallel::RunSpec at_rank(parallel::RunSpec run_spec, int rank);
// Of the rank run_spec.parallelism.rank; the recipe as it is.
RankPlan plan_rank(const parallel::RunSpec& run_spec, Device target);
// Of one rank of each stage: that which holds the most, if ranks of a stage have unequal parts.
std::vector<RankPlan> plan_stages(const parallel::RunSpec& run_spec, Device target);
std::vector<RankPlan> plan_ranks(const parallel::RunSpec& run_spec, Device target);  // of all
const RankPlan& largest(std::span<const RankPlan> plans);
// Bytes of the rank that holds the most. Widths of stages do not change it.
size_t largest_total(const parallel::RunSpec& run_spec, Device target);

}  // namespace agoq::plan
