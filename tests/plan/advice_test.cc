#include "plan/advice.h"

#include <gtest/gtest.h>

namespace agoq::plan {
namespace {

parallel::Job small_job(int64_t sequence, model::Policy policy = model::Policy::Bf16) {
  parallel::Job job;
  job.model = model::preset("demo");
  job.recipe = model::make_recipe(job.model, model::LayerSpec(job.model), policy, model::Recompute::None, "");
  job.sequence_length = sequence;
  return job;
}

size_t bytes_of(const parallel::Job& job) {
  return plan_layout(job, Device::Cpu).total;
}

parallel::Job with_length(parallel::Job job, int64_t sequence) {
  job.sequence_length = sequence;
  return job;
}

TEST(Advice, ListsWhatFitsByCostThenTheRestBySavings) {
  const parallel::Job job = small_job(512);
  const size_t total = bytes_of(job);
  const std::vector<Change> candidates = {{"nothing", "", job},
                                          {"384", "", with_length(job, 384)},
                                          {"448", "", with_length(job, 448)},
                                          {"256", "", with_length(job, 256)},
                                          {"128", "", with_length(job, 128)},
                                          {"320", "", with_length(job, 320)}};
  const std::vector<Advice> advice = advise(candidates, total, bytes_of(with_length(job, 256)), Device::Cpu);
  std::vector<std::string> order;
  for (const Advice& a : advice) order.push_back(a.what);
  // 256 and 128 fit and keep their order; the others help, the most helpful first; what changes nothing is left out.
  EXPECT_EQ(order, (std::vector<std::string>{"256", "128", "320", "384", "448"}));
  for (const Advice& a : advice) {
    EXPECT_EQ(a.total + a.saved, total);
    EXPECT_EQ(a.total, bytes_of(with_length(job, std::stoi(a.what))));
    EXPECT_EQ(a.fits, a.total <= bytes_of(with_length(job, 256)));
  }
}

TEST(Advice, LongestSequenceFitsAndTheNextDoesNot) {
  const parallel::Job job = small_job(1000);
  for (const int64_t wanted : {64, 320, 640, 960}) {
    const size_t budget = bytes_of(with_length(job, wanted));
    EXPECT_EQ(longest_sequence(job, Device::Cpu, budget, 64), wanted);
    EXPECT_EQ(longest_sequence(job, Device::Cpu, budget - 1, 64), wanted - 64);
  }
}

TEST(Advice, NoSequenceFitsIntoNothing) {
  EXPECT_EQ(longest_sequence(small_job(1024), Device::Cpu, 1000, 64), 0);
}

}  // namespace
}  // namespace agoq::plan
