// Memory of what forward keeps for backward: a slot for each chunk and micro-batch in flight, as many as the schedule
// has at a time. The chunks of a stage share the slots.
#pragma once

#include <span>
#include <vector>

#include "model/saved_tensors.h"
#include "parallel/schedule.h"
#include "parallel/stage_shard.h"

namespace agoq::parallel {

// A slot has places, each for the layers of one entry: place j serves the j-th layer of every chunk that has so many.
std::vector<std::vector<int64_t>> layers_of_places(std::span<const LayerRange> chunks);

class SavedSlots {
 public:
  SavedSlots(Arena& arena, const model::LayerSpec& spec, const model::Recipe& recipe, const StageShard& part,
             int64_t tokens, int slots);

  // What the layers of a chunk keep of a micro-batch, from its forward step on to the end of its backward step.
  const std::vector<model::SavedTensors>& take(int chunk, int micro_batch);
  const std::vector<model::SavedTensors>& find(int chunk, int micro_batch) const;
  void release(int chunk, int micro_batch);

  int slots() const { return static_cast<int>(slots_.size()); }
  int most_in_use() const { return most_; }  // so far

 private:
  struct Slot {
    std::vector<std::vector<model::SavedTensors>> chunks;  // [chunk][layer]: views of the same memory
    bool used = false;
    int chunk = 0, micro_batch = 0;
  };
  size_t at(int chunk, int micro_batch) const;

  std::vector<Slot> slots_;
  int in_use_ = 0, most_ = 0;
};

}  // namespace agoq::parallel
