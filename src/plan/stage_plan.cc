#include "plan/stage_plan.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "plan/widths.h"

namespace agoq::plan {
namespace {

using codec::Codec;

// Of the ranks of a stage, the last of a tensor group has the most of the vocabulary, and the first of a data group the
// most rows to update.
parallel::Job at_stage(const parallel::Job& job, int stage) {
  const comm::Mesh& mesh = job.parallelism.mesh;
  return at_rank(job, mesh.rank({mesh.size(comm::Axis::Tensor) - 1, 0, stage}));
}

// The widths of one stage and what they take. Its total is the bytes of its saved tensors, a workspace, and what no
// width changes. Layers compute one after another and read their saved tensors one after another, so the workspace of a
// choice is the largest that one of its widths needs; what each needs, a dry run with this width alone tells.
class StageWidths {
 public:
  StageWidths(const parallel::Job& job, Device target) : job_(job), target_(target) {
    const model::LayerSpec spec(job.model, job.parallelism.tensor());
    const SlotPool slots{parallel::Part(job.model, spec, job.parallelism).chunks, parallel::peak_in_flight(job)};
    items_ = width_items(spec, job.recipe, {&slots, 1}, job.tokens());
    const Layout layout = plan_layout(job, target);
    fixed_ = bytes(layout.total) - bytes(layout.of("workspace")) - total_bytes(choose_widths(items_, 0));
    workspaces_ = {bytes(layout.of("workspace"))};
  }

  // The choice of least error with which the stage needs at most `limit` bytes; the recipe's if even that needs more.
  std::vector<Choice> best(int64_t limit) {
    std::vector<Choice> widest = choose_widths(items_, std::numeric_limits<int64_t>::max());
    if (total(widest) <= limit) return widest;
    std::vector<Choice> best = choose_widths(items_, 0);
    if (fixed_ + total_bytes(best) + *workspaces_.begin() > limit) return best;
    measure();
    // Which workspace the best choice has is not known before: each that any width needs is tried as the highest.
    for (const int64_t workspace : workspaces_) {
      const std::vector<WidthItem> allowed = within(workspace);
      std::vector<Choice> choices = choose_widths(allowed, limit - fixed_ - workspace);
      if (total_error(choices) < total_error(best)) best = std::move(choices);
    }
    return narrowed(std::move(best), limit);
  }

  parallel::Job with(std::span<const Choice> choices) const {
    parallel::Job wider = job_;
    wider.recipe = with_widths(job_.recipe, choices);
    return wider;
  }

 private:
  using Width = std::pair<model::Kept, Codec>;
  static int64_t bytes(size_t count) { return static_cast<int64_t>(count); }
  int64_t total(std::span<const Choice> choices) const { return bytes(plan_layout(with(choices), target_).total); }

  void measure() {
    std::map<Width, std::vector<Choice>> alone;
    for (const WidthItem& item : items_)
      for (size_t o = 1; o < item.options.size(); ++o)
        alone[{item.kept, item.options[o].codec}].push_back({item.layers, item.kept, item.options[o]});
    for (const auto& [width, choices] : alone)
      workspaces_.insert(needs_[width] = bytes(plan_layout(with(choices), target_).of("workspace")));
  }

  std::vector<WidthItem> within(int64_t workspace) const {
    std::vector<WidthItem> items = items_;
    for (WidthItem& item : items)
      std::erase_if(item.options, [&](const WidthOption& option) {
        return option.codec != Codec::None && needs_.at({item.kept, option.codec}) > workspace;
      });
    return items;
  }

  // Within the limit as a dry run of all widths together counts it; they are already, if layers compute as said above.
  std::vector<Choice> narrowed(std::vector<Choice> choices, int64_t limit) const {
    for (int64_t excess = total(choices) - limit; excess > 0; excess = total(choices) - limit)
      choices = choose_widths(items_, total_bytes(choices) - excess);
    return choices;
  }

  const parallel::Job& job_;
  Device target_;
  std::vector<WidthItem> items_;
  int64_t fixed_ = 0;
  std::set<int64_t> workspaces_;  // the recipe's, and those that widths need
  std::map<Width, int64_t> needs_;
};

}  // namespace

parallel::Job at_rank(parallel::Job job, int rank) {
  job.parallelism.rank = rank;
  return job;
}

parallel::Job with_stage_widths(const parallel::Job& job, Device target) {
  const parallel::Parallelism& p = job.parallelism;
  if (!p.stage_widths || !job.training || p.stages() == 1) return job;
  const auto limit = static_cast<int64_t>(plan_layout(at_stage(job, 0), target).total);
  parallel::Job wider = job;
  for (int stage = 1; stage < p.stages(); ++stage) {
    const parallel::Job here = at_stage(wider, stage);
    StageWidths widths(here, target);
    wider.recipe = widths.with(widths.best(limit)).recipe;
  }
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
