// The groups of ranks that this process belongs to.
#pragma once

#include <initializer_list>
#include <map>
#include <memory>
#include <utility>

#include "comm/process_group.h"
#include "parallel/parallelism.h"

namespace agoq::parallel {

// Bytes that a process sends to others, by axis of the mesh; without control values.
struct Traffic {
  uint64_t tensor = 0;
  uint64_t data = 0;      // gradients and weights, also those that further axes share
  uint64_t pipeline = 0;  // activations and their gradients
  uint64_t total() const { return tensor + data + pipeline; }
  bool operator==(const Traffic&) const = default;
};
inline Traffic operator+(const Traffic& a, const Traffic& b) {
  return {a.tensor + b.tensor, a.data + b.data, a.pipeline + b.pipeline};
}
inline Traffic operator*(const Traffic& a, uint64_t times) {
  return {a.tensor * times, a.data * times, a.pipeline * times};
}
inline Traffic operator-(const Traffic& a, const Traffic& b) {
  return {a.tensor - b.tensor, a.data - b.data, a.pipeline - b.pipeline};
}

// A group is made when somebody first asks for it, and opened when it first moves something. Groups of the same ranks
// share a link between GPUs (a communicator of NCCL), unless they are on different channels. All ranks of a group ask
// for the same ones.
class Groups {
 public:
  // What has an order of its own on the host's transport. Those of the pipeline have a communicator of their own, too:
  // NCCL does not buffer sends and does one exchange after another, so activations would wait for gradients that go the
  // other way.
  enum class Channel : uint8_t {
    Common,     // once a step
    Gradients,  // of every micro-batch (ZeRO-2); when they go may depend on how fast the host is
    Weights,    // that are gathered where they are read (ZeRO-3)
    Control,    // the norm; its bytes are not traffic
    Ends,     // of the ranks along these axes those of the first and the last stage; on other stages this process alone
    Forward,  // activations of a pipeline
    Backward,  // their gradients
    // The same between the last stage and the first, which are neighbours where stages have several chunks: on the
    // channel of the others each would wait for the next one around the ring.
    ForwardAround,
    BackwardAround,
  };

  Groups() = default;  // one process
  Groups(comm::Transport& transport, const Parallelism& parallelism);
  static Groups planned(const Parallelism& parallelism);  // of a dry run: nothing moves

  // The ranks that differ from this one along these axes of the mesh only.
  const comm::ProcessGroup& over(std::initializer_list<std::string_view> axes, Channel channel = Channel::Common) const;
  const comm::ProcessGroup& world() const;
  const comm::ProcessGroup& tensor() const { return over({kTensor}); }
  const comm::ProcessGroup& data() const { return over({kReplica, kData}); }  // all data ranks
  const comm::ProcessGroup& replicas() const { return over({kReplica}); }
  const comm::ProcessGroup& pipeline(Channel channel) const { return over({kPipeline}, channel); }
  // All ranks that hold partial sums of a gradient.
  const comm::ProcessGroup& of(model::Reduction reduction) const;
  // Those of them that divide what data ranks divide. On channels other than the common one the ends of a pipeline are
  // on their own.
  const comm::ProcessGroup& shards_of(model::Reduction reduction, Channel channel = Channel::Common) const;

  // On a GPU: agrees on how tensors move, for the groups that somebody has asked for. All ranks call it together.
  void open(const Context& ctx) const;
  Traffic sent() const;  // so far; by planned groups: what would have been

 private:
  struct Key {
    Channel channel = Channel::Common;
    uint32_t axes = 0;  // a bit for each axis of the mesh
    bool operator<(const Key& other) const { return std::pair(channel, axes) < std::pair(other.channel, other.axes); }
  };
  comm::ProcessGroup make(const Key& key, std::vector<int> ranks) const;
  std::vector<int> ranks(const Key& key, std::initializer_list<std::string_view> axes) const;
  uint32_t bit(std::string_view axis) const;

  comm::Transport* transport_ = nullptr;
  Parallelism parallelism_;
  mutable std::map<Key, std::unique_ptr<comm::ProcessGroup>> groups_;
  using LinkKey = std::pair<Channel, std::vector<int>>;
  mutable std::map<LinkKey, std::shared_ptr<comm::SharedLink>> links_;
};

}  // namespace agoq::parallel
