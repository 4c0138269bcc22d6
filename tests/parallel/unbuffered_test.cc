// Pipelines whose sends are not buffered, as NCCL's are not: a send ends with its receive, and what a stage gives one
// channel is done in that order, beside its computing and its other channels.
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <vector>

#include "parallel/schedule.h"

namespace agoq::parallel {
namespace {

struct Pipeline {
  int stages, chunks, micro_batches;
  bool around;  // whether the link between the last stage and the first has channels of its own
};

constexpr int kCompute = -1;  // the stream that computes; channels count from 0

struct Work {
  int peer = 0;               // of a message
  bool sends = false;         // a message: to the peer, or from it
  std::vector<size_t> after;  // work of the same stage
  bool done = false;
};

// One stage's streams, filled as TrainingState::forward() and backward() fill them.
class Stage {
 public:
  Stage(const Pipeline& p, int stage) : p_(p), stage_(stage) {
    const std::vector<Action> actions = schedule(stage, p.stages, p.chunks, p.micro_batches);
    std::optional<size_t> expected, computed;
    for (size_t i = 0; i < actions.size(); ++i) {
      const Action& a = actions[i];
      std::vector<size_t> after;
      if (from(a)) after.push_back(expected ? *expected : add(channel(a.step, *from(a)), *from(a), false, computed));
      expected.reset();
      const Action* next = i + 1 < actions.size() ? &actions[i + 1] : nullptr;
      if (next && next->step != a.step && from(*next))
        expected = add(channel(next->step, *from(*next)), *from(*next), false, computed);
      computed = work_.size();
      work_.push_back({0, false, after});
      streams_[kCompute].push_back(*computed);
      if (to(a)) add(channel(a.step, stage_), *to(a), true, computed);
    }
  }

  bool idle() const {
    for (const auto& [stream, queue] : streams_)
      if (!queue.empty()) return false;
    return true;
  }
  // What a stream has next, if it can begin.
  Work* next(int stream) {
    auto& queue = streams_[stream];
    if (queue.empty()) return nullptr;
    Work& first = work_[queue.front()];
    for (const size_t i : first.after)
      if (!work_[i].done) return nullptr;
    return &first;
  }
  void finish(int stream) {
    work_[streams_[stream].front()].done = true;
    streams_[stream].erase(streams_[stream].begin());
  }

 private:
  int virtual_of(const Action& a) const { return virtual_stage(stage_, p_.stages, a.chunk); }
  std::optional<int> neighbour(int at) const {
    if (at < 0 || at >= p_.stages * p_.chunks) return {};
    return at % p_.stages;
  }
  std::optional<int> from(const Action& a) const {
    return neighbour(virtual_of(a) + (a.step == Step::Forward ? -1 : 1));
  }
  std::optional<int> to(const Action& a) const { return neighbour(virtual_of(a) + (a.step == Step::Forward ? 1 : -1)); }
  int channel(Step step, int sender) const {
    const bool around = p_.around && sender == (step == Step::Forward ? p_.stages - 1 : 0);
    return 2 * static_cast<int>(step) + around;
  }
  size_t add(int stream, int peer, bool sends, std::optional<size_t> after) {
    work_.push_back({peer, sends, after ? std::vector<size_t>{*after} : std::vector<size_t>{}});
    streams_[stream].push_back(work_.size() - 1);
    return work_.size() - 1;
  }

  Pipeline p_;
  int stage_;
  std::vector<Work> work_;
  std::map<int, std::vector<size_t>> streams_;
};

bool ends(const Pipeline& p) {
  std::vector<Stage> stages;
  for (int stage = 0; stage < p.stages; ++stage) stages.emplace_back(p, stage);
  for (bool more = true; more;) {
    more = false;
    for (int s = 0; s < p.stages; ++s) {
      Stage& stage = stages[static_cast<size_t>(s)];
      for (; stage.next(kCompute); more = true) stage.finish(kCompute);
      for (int channel = 0; channel < 4; ++channel) {
        const Work* send = stage.next(channel);
        if (!send || !send->sends) continue;
        Stage& peer = stages[static_cast<size_t>(send->peer)];
        const Work* receive = peer.next(channel);
        if (!receive || receive->sends || receive->peer != s) continue;
        stage.finish(channel), peer.finish(channel);
        more = true;
      }
    }
  }
  for (const Stage& stage : stages)
    if (!stage.idle()) return false;
  return true;
}

TEST(UnbufferedPipeline, Ends) {
  for (int p = 1; p <= 8; ++p)
    for (int v = 1; v <= (p == 1 ? 1 : 4); ++v)
      for (int m = 1; m <= 20; ++m) ASSERT_TRUE(ends({p, v, m, true})) << "p=" << p << " v=" << v << " m=" << m;
}

// Why the link between the last stage and the first is not on the channel of the others.
TEST(UnbufferedPipeline, WouldWaitForItselfAroundARing) {
  EXPECT_FALSE(ends({2, 2, 2, false}));
  EXPECT_FALSE(ends({4, 2, 8, false}));
  EXPECT_TRUE(ends({4, 1, 8, false}));
}

}  // namespace
}  // namespace agoq::parallel
