// Saving checkpoints: folders of safetensors with a manifest, complete or absent.
//
// All ranks write their own pieces of the logical tensors at the same time, in three phases; what has to pass between
// the ranks is text, and the caller passes it:
//
//   draft = draft_checkpoint(folder, step)                    rank 0 makes a temporary folder; the draft goes to all
//   fragment = write_fragment(folder, draft, tensors)         every rank writes and syncs its files there
//   path = commit_checkpoint(folder, draft, fragments, ...)   rank 0 writes the manifest and gives the folder its name
//
// Then `latest` names it. So whenever a process is killed, the newest complete checkpoint is found. The first two never
// throw: a failure (a full disk) travels in their text, and committing throws it, with the rank. On a cluster the
// folder lies on a file system that all ranks share.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/stored_tensor.h"

namespace agoq::train {

struct SaveOptions {
  int64_t keep_last = 0;                     // older checkpoints beyond so many are removed; 0 keeps all
  uint64_t shard_bytes = uint64_t{2} << 30;  // a file holds more only when a single piece does
  int rank = 0;                              // of the ranks that save together
  int ranks = 1;
};

// Removes what an earlier save has left behind. One save at a time per folder (RunFolder's lock).
std::string draft_checkpoint(const std::string& checkpoints, int64_t step);

int64_t step_of_draft(const std::string& draft);

// The tensors are in host memory. Of the pieces of all ranks that are no replicas, each place of a logical tensor must
// be in exactly one. Files are named shard-RANK-NUMBER, or shard-NUMBER by a rank alone.
std::string write_fragment(const std::string& checkpoints, const std::string& draft,
                           std::span<const StoredTensor> tensors, const SaveOptions& options = {});

// `fragments`: of every rank. Returns the path of the new checkpoint; a step that exists already is replaced. On an
// error nothing incomplete is left behind, earlier checkpoints and `latest` are untouched, and the next save may
// succeed.
std::string commit_checkpoint(const std::string& checkpoints, const std::string& draft,
                              std::span<const std::string> fragments, const std::string& metadata_json,
                              const SaveOptions& options = {});

// The three in a row, by one process.
std::string save_checkpoint(const std::string& checkpoints, int64_t step, std::span<const StoredTensor> tensors,
                            const std::string& metadata_json, const SaveOptions& options = {});

}  // namespace agoq::train
