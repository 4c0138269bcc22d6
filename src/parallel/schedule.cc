#include "parallel/schedule.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace agoq::parallel {
namespace {

// How many forward steps a stage is ahead of its backward steps when both alternate.
int steps_ahead(int stage, int stages, int chunks) {
  const int later = stages - 1 - stage;
  return chunks == 1 ? later : (chunks - 1) * stages + 2 * later;
}

// Step k of its kind: a group of p micro-batches passes all chunks before the next group begins.
Action nth(Step step, int k, int stages, int chunks) {
  const int group = k / (stages * chunks), within = k % (stages * chunks);
  const int chunk = within / stages, micro_batch = group * stages + within % stages;
  return {step, step == Step::Forward ? chunk : chunks - 1 - chunk, micro_batch};
}

template <class Counts>
int peak(std::span<const Action> actions, Counts&& counts) {
  int in_flight = 0, most = 0;
  for (const Action& action : actions) {
    if (!counts(action)) continue;
    in_flight += action.step == Step::Forward ? 1 : -1;
    most = std::max(most, in_flight);
  }
  return most;
}

// When each step of a pipeline has ended; never, if it has not.
class Pipeline {
 public:
  static constexpr double kNever = std::numeric_limits<double>::infinity();

  Pipeline(int stages, int chunks, int micro_batches)
      : stages_(stages),
        virtual_stages_(stages * chunks),
        micro_batches_(micro_batches),
        ends_(2 * static_cast<size_t>(virtual_stages_) * static_cast<size_t>(micro_batches), kNever) {}

  double& end(int stage, const Action& a) { return end(a.step, virtual_stage(stage, stages_, a.chunk), a.micro_batch); }
  // When the input of a step is there.
  double input(int stage, const Action& a) {
    const int at = virtual_stage(stage, stages_, a.chunk);
    if (a.step == Step::Forward) return at == 0 ? 0 : end(Step::Forward, at - 1, a.micro_batch);
    const double own = end(Step::Forward, at, a.micro_batch);
    return at == virtual_stages_ - 1 ? own : std::max(own, end(Step::Backward, at + 1, a.micro_batch));
  }

 private:
  double& end(Step step, int at, int micro_batch) {
    const int row = static_cast<int>(step) * virtual_stages_ + at;
    return ends_[static_cast<size_t>(row) * static_cast<size_t>(micro_batches_) + static_cast<size_t>(micro_batch)];
  }

  int stages_, virtual_stages_, micro_batches_;
  std::vector<double> ends_;
};

}  // namespace

// The schedule of a whole number of groups, without the steps of micro-batches that do not exist: what is left of an
// order without deadlock has none either.
std::vector<Action> schedule(int stage, int stages, int chunks, int micro_batches) {
  require(stages >= 1 && chunks >= 1 && micro_batches >= 1,
          "a pipeline of {} stages x {} chunks with {} micro-batches: each must be at least 1", stages, chunks,
          micro_batches);
  require(stage >= 0 && stage < stages, "stage {} is outside a pipeline of {} stages", stage, stages);
  const int groups = (micro_batches + stages - 1) / stages;
  const int steps = groups * stages * chunks, ahead = steps_ahead(stage, stages, chunks);
  std::vector<Action> actions;
  const auto add = [&](Step step, int k) {
    const Action action = nth(step, k, stages, chunks);
    if (action.micro_batch < micro_batches) actions.push_back(action);
  };
  for (int k = 0; k < steps + ahead; ++k) {
    if (k < steps) add(Step::Forward, k);
    if (k >= ahead) add(Step::Backward, k - ahead);
  }
  return actions;
}

std::vector<std::vector<Action>> all_schedules(int stages, int chunks, int micro_batches) {
  std::vector<std::vector<Action>> schedules;
  for (int stage = 0; stage < stages; ++stage) schedules.push_back(schedule(stage, stages, chunks, micro_batches));
  return schedules;
}

int peak_in_flight(std::span<const Action> actions) {
  return peak(actions, [](const Action&) { return true; });
}

int peak_in_flight(std::span<const Action> actions, int chunk) {
  return peak(actions, [&](const Action& action) { return action.chunk == chunk; });
}

Simulation simulate(const std::vector<std::vector<Action>>& schedules, int chunks, const ActionTimes& times) {
  const size_t stages = schedules.size();
  int micro_batches = 0;
  for (const auto& actions : schedules)
    for (const Action& action : actions) micro_batches = std::max(micro_batches, action.micro_batch + 1);

  Pipeline pipeline(static_cast<int>(stages), chunks, micro_batches);
  std::vector<double> free_at(stages, 0), work(stages, 0);
  std::vector<size_t> next(stages, 0);
  // One step of a stage, if it has its input.
  const auto advance = [&](size_t s) {
    if (next[s] == schedules[s].size()) return false;
    const Action& action = schedules[s][next[s]];
    const double input = pipeline.input(static_cast<int>(s), action);
    if (input == Pipeline::kNever) return false;
    const double time = action.step == Step::Forward ? times.forward : times.backward;
    free_at[s] = pipeline.end(static_cast<int>(s), action) = std::max(free_at[s], input) + time;
    work[s] += time;
    ++next[s];
    return true;
  };
  for (bool moving = true; moving;) {
    moving = false;
    for (size_t s = 0; s < stages; ++s)
      while (advance(s)) moving = true;
  }

  Simulation result;
  result.makespan = *std::max_element(free_at.begin(), free_at.end());
  const double most_work = *std::max_element(work.begin(), work.end());
  result.bubble = most_work > 0 ? (result.makespan - most_work) / most_work : 0;
  for (size_t s = 0; s < stages; ++s) result.deadlock |= next[s] < schedules[s].size();
  return result;
}

Simulation simulate(int stages, int chunks, int micro_batches, const ActionTimes& times) {
  return simulate(all_schedules(stages, chunks, micro_batches), chunks, times);
}

}  // namespace agoq::parallel
