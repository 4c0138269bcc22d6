#include "plan/advice.h"

#include <gtest/gtest.h>

namespace agoq::plan {
namespace {

parallel::RunSpec small_run_spec(int64_t sequence, model::Policy policy = model::Policy::Bf16) {
  parallel::RunSpec run_spec;
  run_spec.model = model::preset("demo");
  run_spec.recipe =
      model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), policy, model::Recompute::None, "");
  run_spec.sequence_length = sequence;
  return run_spec;
}

size_t bytes_of(const parallel::RunSpec& run_spec) {
  return plan_layout(run_spec, Device::Cpu).total;
}

parallel::RunSpec with_length(parallel::RunSpec run_spec, int64_t sequence) {
  run_spec.sequence_length = sequence;
  return run_spec;
}

TEST(Advice, ListsWhatFitsByCostThenTheRestBySavings) {
  const parallel::RunSpec run_spec = small_run_spec(512);
  const size_t total = bytes_of(run_spec);
  const std::vector<Change> candidates = {{"nothing", "", run_spec},
                                          {"384", "", with_length(run_spec, 384)},
                                          {"448", "", with_length(run_spec, 448)},
                                          {"256", "", with_length(run_spec, 256)},
                                          {"128", "", with_length(run_spec, 128)},
                                          {"320", "", with_length(run_spec, 320)}};
  const std::vector<Advice> advice = advise(candidates, total, bytes_of(with_length(run_spec, 256)), Device::Cpu);
  std::vector<std::string> order;
  for (const Advice& a : advice) order.push_back(a.what);
  // 256 and 128 fit and keep their order; the others help, the most helpful first; what changes nothing is left out.
  EXPECT_EQ(order, (std::vector<std::string>{"256", "128", "320", "384", "448"}));
  for (const Advice& a : advice) {
    EXPECT_EQ(a.total + a.saved, total);
    EXPECT_EQ(a.total, bytes_of(with_length(run_spec, std::stoi(a.what))));
    EXPECT_EQ(a.fits, a.total <= bytes_of(with_length(run_spec, 256)));
  }
}

TEST(Advice, LongestSequenceFitsAndTheNextDoesNot) {
  const parallel::RunSpec run_spec = small_run_spec(1000);
  for (const int64_t wanted : {64, 320, 640, 960}) {
    const size_t budget = bytes_of(with_length(run_spec, wanted));
    EXPECT_EQ(longest_sequence(run_spec, Device::Cpu, budget, 64), wanted);
    EXPECT_EQ(longest_sequence(run_spec, Device::Cpu, budget - 1, 64), wanted - 64);
  }
}

TEST(Advice, NoSequenceFitsIntoNothing) {
  EXPECT_EQ(longest_sequence(small_run_spec(1024), Device::Cpu, 1000, 64), 0);
}

}  // namespace
}  // namespace agoq::plan
