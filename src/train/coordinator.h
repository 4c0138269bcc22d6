// The processes that train together, as far as text and decisions pass between them; tensors go through the groups of
// parallel/groups.h. A single process coordinates itself.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "comm/consistency_check.h"
#include "comm/transport/transport.h"
#include "train/config/config.h"
#include "train/readers.h"

namespace agoq::train {

class Coordinator {
 public:
  explicit Coordinator(comm::Transport* transport = nullptr) : transport_(transport) {}

  comm::Transport* transport() const { return transport_; }
  int rank() const { return transport_ ? transport_->rank() : 0; }
  int size() const { return transport_ ? transport_->size() : 1; }
  bool alone() const { return size() == 1; }
  bool is_rank0() const { return rank() == 0; }  // writes the run folder and speaks
  WorldRank place() const { return {rank(), size()}; }

  // All ranks make each of these calls alike.
  std::vector<std::string> gather(const std::string& mine) const;  // everybody's, in rank order
  std::string broadcast(const std::string& of_rank0) const;        // rank 0's
  bool any(bool mine) const;
  bool all(bool mine) const { return !any(!mine); }
  // What went wrong with work that each rank does by itself, the first by rank; "" on all if nothing did.
  std::string problem(const std::function<void()>& work) const;
  // Work that may take longer than ranks wait for each other: they say all the time that they are still there. It runs
  // in a thread of its own; where it fails on one rank, the first error by rank is thrown on all.
  void at_length(const std::function<void()>& work, std::chrono::milliseconds still_there = kStillThere) const;
  void agree(const comm::ConsistencyCheck& items) const;  // the same error on all ranks where one differs

  Readers readers() const {
    return {rank(), size(), [this](const std::string& mine) { return gather(mine); }};
  }

 private:
  // Longer than it takes to ask, shorter than any --distributed-timeout-minutes.
  static constexpr std::chrono::milliseconds kStillThere{500};

  comm::Transport* transport_;
};

}  // namespace agoq::train
