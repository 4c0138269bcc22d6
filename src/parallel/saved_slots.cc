#include "parallel/saved_slots.h"

#include <algorithm>

namespace agoq::parallel {

std::vector<std::vector<int64_t>> layers_of_places(std::span<const LayerRange> chunks) {
  std::vector<std::vector<int64_t>> places;
  for (const LayerRange& chunk : chunks) {
    if (places.size() < static_cast<size_t>(chunk.count())) places.resize(static_cast<size_t>(chunk.count()));
    for (int64_t layer = chunk.begin; layer < chunk.end; ++layer)
      places[static_cast<size_t>(layer - chunk.begin)].push_back(layer);
  }
  return places;
}

SavedSlots::SavedSlots(Arena& arena, const model::LayerSpec& spec, const model::Recipe& recipe, const StageShard& part,
                       int64_t tokens, int slots)
    : slots_(static_cast<size_t>(slots)) {
  const std::vector<std::vector<int64_t>> places = layers_of_places(part.chunks);
  for (Slot& slot : slots_) {
    slot.chunks.resize(part.chunks.size());
    for (size_t j = 0; j < places.size(); ++j) {
      std::vector<model::SavedTensors> shared = model::SavedTensors::sharing(arena, spec, recipe, places[j], tokens);
      size_t next = 0;
      for (size_t c = 0; c < part.chunks.size(); ++c)
        if (static_cast<int64_t>(j) < part.chunks[c].count()) slot.chunks[c].push_back(shared[next++]);
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
