// A set of ranks that work on one tensor together: one group per axis of the mesh, or per pair of axes (design 5).
//
// Everything is one call: start(), which sends and receives tensors to and from ranks of the group. The collectives
// below are made of it, with sums in fp32 and in rank order, so that results do not depend on timing and are the same
// on every rank. A group of one moves nothing.
#pragma once

#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "comm/transport.h"
#include "device/context.h"

namespace agoq::comm {

// A tensor that goes to, or comes from, a rank of the group.
struct Message {
  int peer = 0;  // rank in the group, not this one
  Tensor data;   // on the context's device
};

class ProcessGroup {
 public:
  ProcessGroup() = default;  // this process alone
  // `ranks` of the world, in the order of the group, with the transport's own among them. Groups that share two ranks
  // take different channels.
  ProcessGroup(Transport& transport, std::vector<int> ranks, uint32_t channel);
  // As many ranks, but nothing moves: what a dry run on Meta is given.
  static ProcessGroup planned(int size, int rank);

  int size() const { return size_; }
  int rank() const { return rank_; }
  bool alone() const { return size_ == 1; }
  int world_rank(int rank) const { return ranks_.at(static_cast<size_t>(rank)); }
  uint64_t bytes_sent() const;  // 0 if alone

  // Sends and receives all at once; the messages between two ranks go in the same order on both. On a GPU what was
  // started on its stream before comes first, and what is started there after wait() comes later; the host may go on.
  std::unique_ptr<Pending> start(const Context& ctx, std::span<const Message> sends,
                                 std::span<const Message> receives) const;
  void exchange(const Context& ctx, std::span<const Message> sends, std::span<const Message> receives) const;

  // mine [n] of every rank -> all [size · n], in rank order. `mine` may be its own part of `all`.
  void all_gather(const Context& ctx, const Tensor& mine, const Tensor& all) const;
  // addends [size · n] (fp32, fp64 or bf16) -> sum [n] of part `rank` of every rank's addends. Parts are equal.
  void reduce_scatter_sum(const Context& ctx, const Tensor& addends, const Tensor& sum) const;
  // x := Σ over ranks of x. For small tensors: every rank gets all addends.
  void all_reduce_sum(const Context& ctx, const Tensor& x) const;
  void send(const Context& ctx, int peer, const Tensor& x) const;
  void receive(const Context& ctx, int peer, const Tensor& x) const;

  // A small value of every rank, in rank order; in host memory whatever the device, and nothing waits for a GPU.
  template <class T>
  std::vector<T> values(const T& mine) const {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> all(static_cast<size_t>(size_), mine);
    gather_on_host(all.data(), sizeof(T));
    return all;
  }
  void barrier() const { values('b'); }

 private:
  void gather_on_host(void* all, size_t bytes_each) const;  // own part filled in

  Transport* transport_ = nullptr;
  std::vector<int> ranks_ = {0};
  int size_ = 1, rank_ = 0;
  uint32_t channel_ = 0;
};

}  // namespace agoq::comm
