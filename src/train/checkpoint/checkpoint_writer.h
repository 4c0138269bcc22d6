// Saves checkpoints of a run: on a GPU in the background, from a copy in host memory, so that training waits for the
// copy but not for the disk; on the CPU at once, because a copy would double what the run holds.
//
//   every rank                                   rank 0
//                                                draft = draft(step), told to all
//   begin(ctx, draft, tensors, metadata)
//   fragment = poll_fragment() or finish_fragment(), given to rank 0
//                                                commit(fragments), when it has those of all ranks
//                                                saved = poll() or finish(), told to all
#pragma once

#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/context.h"
#include "train/checkpoint/checkpoint_save.h"

namespace agoq::train {

struct SavedCheckpoint {
  int64_t step = 0;
  std::string path;   // of the new checkpoint; empty if it failed
  std::string error;  // why
};

class CheckpointWriter {
 public:
  // `folder`: the checkpoints folder.
  CheckpointWriter(std::string folder, const SaveOptions& options) : folder_(std::move(folder)), options_(options) {}
  ~CheckpointWriter();

  std::string draft(int64_t step) const { return draft_checkpoint(folder_, step); }
  // Begins to write this rank's pieces, after the save before has ended; `ctx` is where the tensors are. `metadata`
  // counts on rank 0.
  void begin(const Context& ctx, std::string draft, const std::vector<StoredTensor>& tensors, std::string metadata);
  // What this rank has written, once: when all of it is on the disk (poll), or after waiting for that (finish).
  std::optional<std::string> poll_fragment();
  std::optional<std::string> finish_fragment();
  // Rank 0, with the fragments of all: makes the checkpoint complete.
  void commit(std::vector<std::string> fragments);
  // What became of the save, once, likewise.
  std::optional<SavedCheckpoint> poll();
  std::optional<SavedCheckpoint> finish();

 private:
  using Bytes = std::unique_ptr<uint8_t[]>;
  std::vector<StoredTensor> copy_to_host(const Context& ctx, std::vector<StoredTensor> tensors);

  std::string folder_;
  SaveOptions options_;
  bool at_once_ = false;
  std::string draft_, metadata_;  // of the save that is going on
  std::vector<Bytes> copies_;     // of each piece; kept from save to save
  std::future<std::string> fragment_;
  std::future<SavedCheckpoint> saved_;
};

}  // namespace agoq::train
