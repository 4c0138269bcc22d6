// The order in which a pipeline stage runs its forward and backward steps: 1F1B, and interleaved 1F1B where a stage has
// several chunks (Narayanan et al., arXiv 2104.04473). A pure function; docs/pipeline.md explains it.
//
// p stages, v chunks each, m micro-batches. Chunk c of stage s is virtual stage c * p + s, and a micro-batch passes the
// virtual stages 0, 1, ..., p * v - 1 forward and back again.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace agoq::parallel {

enum class Step : uint8_t { Forward, Backward };

struct Action {
  Step step{};
  int chunk = 0;
  int micro_batch = 0;
  bool operator==(const Action&) const = default;
};

inline constexpr int virtual_stage(int stage, int stages, int chunk) {
  return chunk * stages + stage;
}

// What `stage` does, in order: a forward and a backward step for each of its chunks and micro-batches, each once. Any
// number of micro-batches will do: they go in groups of p, the last group may be smaller. Per chunk, forward and
// backward steps take micro-batches in rising order; all stages take steps of one kind in the same order, so messages
// between two stages arrive in the order in which they are wanted.
std::vector<Action> schedule(int stage, int stages, int chunks, int micro_batches);
std::vector<std::vector<Action>> all_schedules(int stages, int chunks, int micro_batches);  // [stage]

// The most activations (of one chunk and one micro-batch each) that await their backward step at a time: of the stage,
//   v = 1: min(p - i, m)    v >= 2: at most min((v - 1) p + 2 (p - 1 - i) + 1, v m), exactly where p divides m or
//                                   m >= 2 p - 1
// and of one of its chunks, which so needs that many saved slots; micro-batch b fits in slot b % slots.
int peak_in_flight(std::span<const Action> actions);
int peak_in_flight(std::span<const Action> actions, int chunk);

// Seconds, or any other unit, of one step of one chunk.
struct ActionTimes {
  double forward = 1;
  double backward = 2;
};

struct Simulation {
  double makespan = 0;    // from the first step's start to the last one's end
  double bubble = 0;      // (makespan - the busiest stage's work) / its work; (p - 1) / (m v) where p divides m
  bool deadlock = false;  // every stage left waits for another: makespan and bubble are of what was done until then
};

// Runs the schedules of all stages [stage]: each in its order, a step when its input is there. Sends are buffered and
// take no time.
Simulation simulate(const std::vector<std::vector<Action>>& schedules, int chunks, const ActionTimes& times);
Simulation simulate(int stages, int chunks, int micro_batches, const ActionTimes& times);

}  // namespace agoq::parallel
