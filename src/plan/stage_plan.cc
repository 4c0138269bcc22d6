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
parallel::RunSpec at_stage(const parallel::RunSpec& run_spec, int stage) {
  const comm::Mesh& mesh = run_spec.parallelism.mesh;
  return at_rank(run_spec, mesh.rank({{std::string(parallel::kPipeline), stage},
                                      {std::string(parallel::kTensor), mesh.size(parallel::kTensor) - 1}}));
}

// The widths of one stage and what they take. Its total is the bytes of its saved tensors, a workspace, and what no
// width changes. Layers compute one after another and read their saved tensors one after another, so the workspace of a
// choice is the largest that one of its widths needs; what each needs, a dry run with this width alone tells.
class StageWidths {
 public:
  StageWidths(const parallel::RunSpec& run_spec, Device target) : run_spec_(run_spec), target_(target) {
    const model::LayerSpec spec(run_spec.model, run_spec.parallelism.tensor());
    const SlotPool slots{parallel::StageShard(run_spec.model, spec, run_spec.parallelism).chunks,
                         parallel::peak_in_flight(run_spec)};
    items_ = width_items(spec, run_spec.recipe, {&slots, 1}, run_spec.tokens());
    const Layout layout = plan_layout(run_spec, target);
    fixed_ = bytes(layout.total) - bytes(layout.of(Owner::Workspace)) - total_bytes(choose_widths(items_, 0));
    workspaces_ = {bytes(layout.of(Owner::Workspace))};
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

  parallel::RunSpec with(std::span<const Choice> choices) const {
    parallel::RunSpec wider = run_spec_;
    wider.recipe = with_widths(run_spec_.recipe, choices);
    return wider;
  }

 private:
  using Width = std::pair<model::SavedTensor, Codec>;
  static int64_t bytes(size_t count) { return static_cast<int64_t>(count); }
  int64_t total(std::span<const Choice> choices) const { return bytes(plan_layout(with(choices), target_).total); }

  void measure() {
    std::map<Width, std::vector<Choice>> alone;
    for (const WidthItem& item : items_)
      for (size_t o = 1; o < item.options.size(); ++o)
        alone[{item.kept, item.options[o].codec}].push_back({item.layers, item.kept, item.options[o]});
    for (const auto& [width, choices] : alone)
      workspaces_.insert(needs_[width] = bytes(plan_layout(with(choices), target_).of(Owner::Workspace)));
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

  const parallel::RunSpec& run_spec_;
  Device target_;
  std::vector<WidthItem> items_;
  int64_t fixed_ = 0;
  std::set<int64_t> workspaces_;  // the recipe's, and those that widths need
  std::map<Width, int64_t> needs_;
};

}  // namespace

parallel::RunSpec at_rank(parallel::RunSpec run_spec, int rank) {
  run_spec.parallelism.rank = rank;
  return run_spec;
}

parallel::RunSpec with_stage_widths(const parallel::RunSpec& run_spec, Device target) {
  const parallel::Parallelism& p = run_spec.parallelism;
  if (!p.stage_widths || !run_spec.training || p.stages() == 1) return run_spec;
  const auto limit = static_cast<int64_t>(plan_layout(at_stage(run_spec, 0), target).total);
  parallel::RunSpec wider = run_spec;
  for (int stage = 1; stage < p.stages(); ++stage) {
    const parallel::RunSpec here = at_stage(wider, stage);
    StageWidths widths(here, target);
    wider.recipe = widths.with(widths.best(limit)).recipe;
  }
  return wider;
}

RankPlan plan_rank(const parallel::RunSpec& run_spec, Device target) {
  const parallel::Parallelism& p = run_spec.parallelism;
  const model::LayerSpec spec(run_spec.model, p.tensor());
  const parallel::StageShard part(run_spec.model, spec, p);
  RankPlan plan;
  plan.rank = p.rank;
  plan.stage = p.stage();
  plan.chunks = part.chunks;
  for (const model::ParamId& id : part.ids) plan.parameters += spec[id.param].count();
  plan.in_flight = parallel::peak_in_flight(run_spec);
  plan.widths = width_histogram(spec, run_spec.recipe, part.chunks);
  plan.layout = plan_layout(run_spec, target);
  plan.sent = plan_traffic(run_spec, target);
  return plan;
}

std::vector<RankPlan> plan_stages(const parallel::RunSpec& run_spec, Device target) {
  std::vector<RankPlan> plans;
  for (int stage = 0; stage < run_spec.parallelism.stages(); ++stage)
    plans.push_back(plan_rank(at_stage(run_spec, stage), target));
  return plans;
}

std::vector<RankPlan> plan_ranks(const parallel::RunSpec& run_spec, Device target) {
  std::vector<RankPlan> plans;
  for (int rank = 0; rank < run_spec.parallelism.mesh.ranks(); ++rank)
    plans.push_back(plan_rank(at_rank(run_spec, rank), target));
  return plans;
}

const RankPlan& largest(std::span<const RankPlan> plans) {
  require(!plans.empty(), "there is no plan of any rank");
  return *std::max_element(plans.begin(), plans.end(),
                           [](const RankPlan& a, const RankPlan& b) { return a.layout.total < b.layout.total; });
}

size_t largest_total(const parallel::RunSpec& run_spec, Device target) {
  size_t most = 0;
  for (int stage = 0; stage < run_spec.parallelism.stages(); ++stage)
    most = std::max(most, plan_layout(at_stage(run_spec, stage), target).total);
  return most;
}

}  // namespace agoq::plan
