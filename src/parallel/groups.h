// The groups of ranks that this process belongs to, each with a channel of its own.
#pragma once

#include "comm/process_group.h"
#include "parallel/parallelism.h"

namespace agoq::parallel {

// Bytes that a process sends to others, by axis of the mesh; without control values.
struct Traffic {
  uint64_t tensor = 0;
  uint64_t data = 0;      // gradients and updated weights, also those that further axes share
  uint64_t pipeline = 0;  // activations and their gradients
  uint64_t total() const { return tensor + data + pipeline; }
  bool operator==(const Traffic&) const = default;
};
inline Traffic operator-(const Traffic& a, const Traffic& b) {
  return {a.tensor - b.tensor, a.data - b.data, a.pipeline - b.pipeline};
}

struct Groups {
  Groups() = default;  // one process
  Groups(comm::Transport& transport, const Parallelism& parallelism);
  static Groups planned(const Parallelism& parallelism);  // of a dry run: nothing moves

  // On a GPU: agrees on how tensors move. All ranks call it together.
  void open(const Context& ctx) const;
  Traffic sent() const;  // so far; by planned groups: what would have been
  const comm::ProcessGroup& of(model::Reduction reduction) const;

  comm::ProcessGroup world;
  comm::ProcessGroup tensor;
  comm::ProcessGroup data;
  comm::ProcessGroup data_and_tensor;
  comm::ProcessGroup data_and_ends;  // data ranks of the first and the last stage; on other stages this process alone
  comm::ProcessGroup forward;        // the pipeline, for activations
  comm::ProcessGroup backward;       // the pipeline, for their gradients
  // The same between the last stage and the first, which are neighbours where stages have several chunks. NCCL does not
  // buffer sends: on the channel of the others each would wait for the next one around the ring.
  comm::ProcessGroup forward_around, backward_around;
};

}  // namespace agoq::parallel
