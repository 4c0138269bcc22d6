// Checkpoints of all processes together: every rank writes its part, rank 0 makes them a checkpoint, and all learn
// what became of it at the same step.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "train/checkpoint/checkpoint_writer.h"
#include "train/coordinator.h"

namespace agoq::train {

class AsyncCheckpointer {
 public:
  // `folder`: the checkpoints folder, which all ranks see.
  AsyncCheckpointer(const Coordinator& coordinator, std::string folder, int64_t keep_last);

  // All ranks make each of these calls alike. Begins a save, after the one before has ended.
  void begin(const Context& ctx, int64_t step, const std::vector<StoredTensor>& tensors, std::string metadata);
  // What became of it, once: when it has ended (poll), or after waiting for it (finish).
  std::optional<SavedCheckpoint> poll() { return advance(false); }
  std::optional<SavedCheckpoint> finish() { return advance(true); }

 private:
  enum class Phase : uint8_t { Idle, Writing, Committing };
  std::optional<SavedCheckpoint> advance(bool wait);
  bool all_written(bool wait);
  std::string outcome(bool wait);  // rank 0's, or "" if it is not known yet

  const Coordinator& coordinator_;
  CheckpointWriter writer_;
  Phase phase_ = Phase::Idle;
  std::optional<std::string> fragment_;  // of this rank
};

}  // namespace agoq::train
