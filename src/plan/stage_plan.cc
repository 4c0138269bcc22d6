#include "plan/stage_plan.h"

#include <algorithm>

#include "plan/widths.h"

namespace agoq::plan {
namespace {

constexpr int kAttempts = 8;

// Of the ranks of a stage, the last of a tensor group has the most of the vocabulary, and the first of a data group the
// most rows to update.
parallel::Job at_stage(const parallel::Job& job, int stage) {
  const comm::Mesh& mesh = job.parallelism.mesh;
  return at_rank(job, mesh.rank({mesh.size(comm::Axis::Tensor) - 1, 0, stage}));
}

// The recipe of the job's rank, widened as far as its total stays within `limit`.
model::Recipe widened(const parallel::Job& job, size_t limit, Device target) {
  const auto beyond_limit = [&](const parallel::Job& planned) {
    return static_cast<int64_t>(plan_layout(planned, target).total) - static_cast<int64_t>(limit);
  };
  const model::LayerSpec spec(job.model, job.parallelism.tensor());
  const SlotPool slots{parallel::Part(job.model, spec, job.parallelism).chunks, parallel::peak_in_flight(job)};
  const std::vector<WidthItem> items = width_items(spec, job.recipe, {&slots, 1}, job.tokens());
  const int64_t unchanged = total_bytes(choose_widths(items, 0));
  // Widths also change the workspace, up or down: what is too much then is taken from the room for activations.
  int64_t room = -beyond_limit(job);
  for (int attempt = 0; attempt < kAttempts && room > 0; ++attempt) {
    parallel::Job wider = job;
    wider.recipe = with_widths(job.recipe, choose_widths(items, unchanged + room));
    const int64_t excess = beyond_limit(wider);
    if (excess <= 0) return wider.recipe;
    room -= excess;
  }
  return job.recipe;
}

}  // namespace

parallel::Job at_rank(parallel::Job job, int rank) {
  job.parallelism.rank = rank;
  return job;
}

parallel::Job with_stage_widths(const parallel::Job& job, Device target) {
  const parallel::Parallelism& p = job.parallelism;
  if (!p.stage_widths || !job.training || p.stages() == 1) return job;
  const size_t limit = plan_layout(at_stage(job, 0), target).total;
  parallel::Job wider = job;
  for (int stage = 1; stage < p.stages(); ++stage) wider.recipe = widened(at_stage(wider, stage), limit, target);
  return wider;
}

RankPlan plan_rank(const parallel::Job& job, Device target) {
  const parallel::Parallelism& p = job.parallelism;
  const model::LayerSpec spec(job.model, p.tensor());
  const parallel::Part part(job.model, spec, p);
  RankPlan plan;
  plan.rank = p.rank;
  plan.stage = p.stage();
  plan.chunks = part.chunks;
  for (const model::ParamId& id : part.ids) plan.parameters += spec[id.param].count();
  plan.in_flight = parallel::peak_in_flight(job);
  plan.widths = width_histogram(spec, job.recipe, part.chunks);
  plan.layout = plan_layout(job, target);
  return plan;
}

std::vector<RankPlan> plan_stages(const parallel::Job& job, Device target) {
  std::vector<RankPlan> plans;
  for (int stage = 0; stage < job.parallelism.stages(); ++stage)
    plans.push_back(plan_rank(at_stage(job, stage), target));
  return plans;
}

std::vector<RankPlan> plan_ranks(const parallel::Job& job, Device target) {
  std::vector<RankPlan> plans;
  for (int rank = 0; rank < job.parallelism.mesh.ranks(); ++rank)
    plans.push_back(plan_rank(at_rank(job, rank), target));
  return plans;
}

const RankPlan& largest(std::span<const RankPlan> plans) {
  require(!plans.empty(), "there is no plan of any rank");
  return *std::max_element(plans.begin(), plans.end(),
                           [](const RankPlan& a, const RankPlan& b) { return a.layout.total < b.layout.total; });
}

size_t largest_total(const parallel::Job& job, Device target) {
  size_t most = 0;
  for (int stage = 0; stage < job.parallelism.stages(); ++stage)
    most = std::max(most, plan_layout(at_stage(job, stage), target).total);
  return most;
}

}  // namespace agoq::plan
