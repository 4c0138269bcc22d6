#include "parallel/schedule.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "base/error.h"

namespace agoq::parallel {
namespace {

using testing::ElementsAre;
using enum Step;

struct Shape {
  int stages, chunks, micro_batches;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "p=" << s.stages << " v=" << s.chunks << " m=" << s.micro_batches;
}

// All p <= 16, v <= 4, m <= 64.
template <class Check>
void for_all_shapes(Check&& check) {
  for (int p = 1; p <= 16; ++p)
    for (int v = 1; v <= 4; ++v)
      for (int m = 1; m <= 64; ++m) {
        check(Shape{p, v, m});
        if (testing::Test::HasFailure()) {
          ADD_FAILURE() << "at " << Shape{p, v, m};
          return;
        }
      }
}

std::vector<std::string> text(const std::vector<Action>& actions) {
  std::vector<std::string> words;
  for (const Action& a : actions)
    words.push_back(fmt::format("{}{}.{}", a.step == Forward ? 'F' : 'B', a.chunk, a.micro_batch));
  return words;
}

TEST(Schedule, OneForwardOneBackward) {
  EXPECT_THAT(text(schedule(0, 2, 1, 3)), ElementsAre("F0.0", "F0.1", "B0.0", "F0.2", "B0.1", "B0.2"));
  EXPECT_THAT(text(schedule(1, 2, 1, 3)), ElementsAre("F0.0", "B0.0", "F0.1", "B0.1", "F0.2", "B0.2"));
  EXPECT_THAT(text(schedule(0, 1, 1, 2)), ElementsAre("F0.0", "B0.0", "F0.1", "B0.1"));
}

// Figure 4 of arXiv 2104.04473, with 2 stages; and with a smaller last group.
TEST(Schedule, Interleaved) {
  EXPECT_THAT(text(schedule(1, 2, 2, 4)), ElementsAre("F0.0", "F0.1", "F1.0", "B1.0", "F1.1", "B1.1", "F0.2", "B0.0",
                                                      "F0.3", "B0.1", "F1.2", "B1.2", "F1.3", "B1.3", "B0.2", "B0.3"));
  EXPECT_THAT(text(schedule(1, 2, 2, 3)), ElementsAre("F0.0", "F0.1", "F1.0", "B1.0", "F1.1", "B1.1", "F0.2", "B0.0",
                                                      "B0.1", "F1.2", "B1.2", "B0.2"));
}

TEST(Schedule, DoesEveryStepOnceInAnOrderThatAStageCanKeep) {
  for_all_shapes([](const Shape& s) {
    for (int stage = 0; stage < s.stages; ++stage) {
      const std::vector<Action> actions = schedule(stage, s.stages, s.chunks, s.micro_batches);
      ASSERT_EQ(actions.size(), static_cast<size_t>(2 * s.chunks * s.micro_batches));
      // Micro-batches done so far, by step and chunk: each chunk takes them in rising order, so none twice.
      std::vector<int> forward(static_cast<size_t>(s.chunks), 0), backward = forward;
      for (const Action& a : actions) {
        ASSERT_TRUE(a.chunk >= 0 && a.chunk < s.chunks);
        const auto chunk = static_cast<size_t>(a.chunk);
        ASSERT_EQ(a.micro_batch, a.step == Forward ? forward[chunk]++ : backward[chunk]++);
        ASSERT_LE(backward[chunk], forward[chunk]) << "a backward step before its forward step";
      }
      ASSERT_EQ(*std::min_element(backward.begin(), backward.end()), s.micro_batches);
    }
  });
}

// A message: the channel (step, sender, receiver) that carries it, the virtual stage it is for, its micro-batch.
using Channel = std::tuple<Step, int, int>;
using Messages = std::map<Channel, std::vector<std::pair<int, int>>>;

TEST(Schedule, MessagesArriveInTheOrderInWhichTheyAreWanted) {
  for_all_shapes([](const Shape& s) {
    Messages sent, wanted;
    const int last = s.stages * s.chunks - 1;
    const auto rank = [&](int at) { return at % s.stages; };
    for (int stage = 0; stage < s.stages; ++stage)
      for (const Action& a : schedule(stage, s.stages, s.chunks, s.micro_batches)) {
        const int at = virtual_stage(stage, s.stages, a.chunk), way = a.step == Forward ? 1 : -1;
        const int to = at + way, from = at - way;
        if (to >= 0 && to <= last) sent[{a.step, stage, rank(to)}].emplace_back(to, a.micro_batch);
        if (from >= 0 && from <= last) wanted[{a.step, rank(from), stage}].emplace_back(at, a.micro_batch);
      }
    ASSERT_EQ(sent, wanted);
  });
}

TEST(Schedule, HoldsNoMoreActivationsThanStated) {
  for_all_shapes([](const Shape& s) {
    const auto [p, v, m] = s;
    for (int i = 0; i < p; ++i) {
      const std::vector<Action> actions = schedule(i, p, v, m);
      const int peak = peak_in_flight(actions);
      const int bound = v == 1 ? std::min(p - i, m) : std::min((v - 1) * p + 2 * (p - 1 - i) + 1, v * m);
      if (v == 1 || m % p == 0 || m >= 2 * p - 1)
        ASSERT_EQ(peak, bound) << "stage " << i;
      else
        ASSERT_LE(peak, bound) << "stage " << i;
    }
  });
}

TEST(Schedule, HoldsTheActivationsOfTheDesignsExample) {
  for (const int m : {8, 9, 16, 63}) {
    const auto stages = all_schedules(4, 2, m);
    EXPECT_THAT(std::vector<int>({peak_in_flight(stages[0]), peak_in_flight(stages[1]), peak_in_flight(stages[2]),
                                  peak_in_flight(stages[3])}),
                ElementsAre(11, 9, 7, 5));
  }
}

TEST(Schedule, GivesEveryMicroBatchOfAChunkASlotOfItsOwn) {
  for_all_shapes([](const Shape& s) {
    for (int stage = 0; stage < s.stages; ++stage) {
      const std::vector<Action> actions = schedule(stage, s.stages, s.chunks, s.micro_batches);
      std::vector<std::vector<bool>> taken;
      for (int chunk = 0; chunk < s.chunks; ++chunk)
        taken.emplace_back(static_cast<size_t>(peak_in_flight(actions, chunk)), false);
      for (const Action& a : actions) {
        auto& slots = taken[static_cast<size_t>(a.chunk)];
        const size_t slot = static_cast<size_t>(a.micro_batch) % slots.size();
        ASSERT_EQ(slots[slot], a.step == Backward);
        slots[slot] = a.step == Forward;
      }
    }
  });
}

TEST(Schedule, NeverDeadlocksAndIdlesAsLittleAsTheClosedFormSays) {
  for_all_shapes([](const Shape& s) {
    for (const ActionTimes& times : {ActionTimes{1, 2}, ActionTimes{1, 1}}) {
      const Simulation run = simulate(s.stages, s.chunks, s.micro_batches, times);
      const double share = (s.stages - 1.0) / (s.micro_batches * s.chunks);
      const double work = s.micro_batches * s.chunks * (times.forward + times.backward);
      ASSERT_FALSE(run.deadlock);
      ASSERT_NEAR(run.makespan, work * (1 + run.bubble), 1e-9 * run.makespan);
      if (s.chunks == 1 || s.micro_batches % s.stages == 0)
        ASSERT_NEAR(run.bubble, share, 1e-9);
      else
        ASSERT_GE(run.bubble, share - 1e-9);
    }
  });
}

// A smaller last group idles, at worst, as if its missing micro-batches were there.
TEST(Schedule, SmallerLastGroupsCostNoMoreThanWholeOnes) {
  for (const int p : {3, 4, 8})
    for (const int v : {2, 3})
      for (int m = 1; m <= 3 * p; ++m) {
        const int whole = (m + p - 1) / p * p;
        EXPECT_LE(simulate(p, v, m, {}).makespan, simulate(p, v, whole, {}).makespan) << Shape{p, v, m};
      }
}

// The table of docs/pipeline.md.
TEST(Schedule, IdlesAsDocumented) {
  const double expected[] = {0.19, 0.28, 0.22, 0.17, 0.13};
  for (int m = 8; m <= 12; ++m) EXPECT_NEAR(simulate(4, 2, m, {1, 2}).bubble, expected[m - 8], 0.0051) << m;
}

TEST(Schedule, SimulationSeesADeadlock) {
  // Both stages begin with what the other has to send first.
  const std::vector<std::vector<Action>> stages = {
      {{Forward, 0, 0}, {Backward, 0, 0}, {Forward, 0, 1}, {Backward, 0, 1}},
      {{Forward, 0, 1}, {Backward, 0, 1}, {Forward, 0, 0}, {Backward, 0, 0}}};
  const Simulation run = simulate(stages, 1, {});
  EXPECT_TRUE(run.deadlock);
  EXPECT_EQ(run.makespan, 1) << "one forward step was possible";
}

TEST(Schedule, SimulationWaitsForMessages) {
  // Two stages, one micro-batch: F F B B one after another, each stage idle half of the time.
  const Simulation run = simulate(2, 1, 1, {1, 2});
  EXPECT_EQ(run.makespan, 6);
  EXPECT_EQ(run.bubble, 1);
}

TEST(Schedule, RefusesWhatIsNoPipeline) {
  EXPECT_THROW(schedule(0, 0, 1, 1), Error);
  EXPECT_THROW(schedule(0, 2, 0, 1), Error);
  EXPECT_THROW(schedule(0, 2, 1, 0), Error);
  EXPECT_THROW(schedule(2, 2, 1, 1), Error);
}

}  // namespace
}  // namespace agoq::parallel
