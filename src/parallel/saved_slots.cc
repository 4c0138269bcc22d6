#include "parallel/saved_slots.h"

#include <algorithm>

namespace agoq::parallel {
namespace {

// The j-th layers of all chunks, which share a place in a slot.
std::vector<int64_t> layers_at(const StageShard& part, int64_t j) {
  std::vector<int64_t> layers;
  for (const LayerRange& chunk : part.chunks)
    if (j < chunk.count()) layers.push_back(chunk.begin + j);
  return layers;
}

}  // namespace

SavedSlots::SavedSlots(Arena& arena, const model::LayerSpec& spec, const model::Recipe& recipe, const StageShard& part,
                       int64_t tokens, int slots)
    : slots_(static_cast<size_t>(slots)) {
  int64_t places = 0;
  for (const LayerRange& chunk : part.chunks) places = std::max(places, chunk.count());
  for (Slot& slot : slots_) {
    slot.chunks.resize(part.chunks.size());
    for (int64_t j = 0; j < places; ++j) {
      std::vector<model::SavedTensors> shared =
          model::SavedTensors::sharing(arena, spec, recipe, layers_at(part, j), tokens);
      size_t next = 0;
      for (size_t c = 0; c < part.chunks.size(); ++c)
        if (j < part.chunks[c].count()) slot.chunks[c].push_back(shared[next++]);
    }
  }
}

const std::vector<model::SavedTensors>& SavedSlots::take(int chunk, int micro_batch) {
  const auto free = std::find_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return !slot.used; });
  require(free != slots_.end(), "chunk {} begins micro-batch {} while all {} slots for activations are in use", chunk,
          micro_batch, slots());
  free->used = true;
  free->chunk = chunk;
  free->micro_batch = micro_batch;
  most_ = std::max(most_, ++in_use_);
  return free->chunks[static_cast<size_t>(chunk)];
}

const std::vector<model::SavedTensors>& SavedSlots::find(int chunk, int micro_batch) const {
  return slots_[at(chunk, micro_batch)].chunks[static_cast<size_t>(chunk)];
}

void SavedSlots::release(int chunk, int micro_batch) {
  slots_[at(chunk, micro_batch)].used = false;
  --in_use_;
}

size_t SavedSlots::at(int chunk, int micro_batch) const {
  for (size_t i = 0; i < slots_.size(); ++i)
    if (slots_[i].used && slots_[i].chunk == chunk && slots_[i].micro_batch == micro_batch) return i;
  fail("nothing is kept of micro-batch {} in chunk {}", micro_batch, chunk);
}

}  // namespace agoq::parallel
