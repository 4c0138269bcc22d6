// Saves checkpoints of a run: on a GPU in the background, from a copy in host memory, so that training waits for the
// copy but not for the disk; on the CPU at once, because a copy would double what the run holds.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/checkpoint.h"

namespace agoq::train {

struct SavedCheckpoint {
  int64_t step = 0;
  std::string path;   // of the new checkpoint; empty if it failed
  std::string error;  // why
};

class CheckpointWriter {
 public:
  // `folder`: the checkpoints folder.
  CheckpointWriter(std::string folder, int64_t keep_last) : folder_(std::move(folder)), keep_last_(keep_last) {}
  ~CheckpointWriter() { finish(); }

  // Begins a save, after the one before has ended; `ctx` is where the tensors are.
  void begin(const Context& ctx, int64_t step, const std::vector<NamedTensor>& tensors, std::string metadata);
  // What became of the last save, once: when it has ended (poll), or after waiting for it (finish).
  std::optional<SavedCheckpoint> poll();
  std::optional<SavedCheckpoint> finish();

 private:
  using Bytes = std::unique_ptr<uint8_t[]>;
  std::vector<NamedTensor> copy_to_host(const Context& ctx, const std::vector<NamedTensor>& tensors);

  std::string folder_;
  int64_t keep_last_;
  std::vector<Bytes> copies_;  // of each tensor; kept from save to save
  std::future<SavedCheckpoint> running_;
};

}  // namespace agoq::train
