// A set of ranks that work on one tensor together: those along some axes of the mesh (design 5).
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

#include "comm/gpu_link.h"
#include "comm/window.h"
#include "device/exposed.h"

namespace agoq::comm {

class Peers;

// A link between GPUs that several groups of the same ranks share; empty until the first of them opens it.
struct SharedLink {
  std::shared_ptr<GpuLink> link;
};

class ProcessGroup {
 public:
  ProcessGroup() = default;  // this process alone
  // `ranks` of the world, in the order of the group, with the transport's own among them. Groups that share two ranks
  // take different channels. Groups of the same ranks may share a link by NCCL, if all exchange in one order
  // everywhere.
  ProcessGroup(Transport& transport, std::vector<int> ranks, uint32_t channel, const GroupOptions& options = {},
               std::shared_ptr<SharedLink> link = std::make_shared<SharedLink>());
  // As many ranks, but nothing moves: what a dry run on Meta is given. Bytes that would have moved are counted.
  static ProcessGroup planned(int size, int rank);
  // What Context::exposed is told that computing waits for in the calls below that wait.
  ProcessGroup& awaited_as(Exposed kind) {
    awaited_ = kind;
    return *this;
  }

  int size() const { return size_; }
  int rank() const { return rank_; }
  bool alone() const { return size_ == 1; }
  int world_rank(int rank) const { return host_.ranks.at(static_cast<size_t>(rank)); }
  uint64_t bytes_sent() const;  // to other ranks, or planned to be, without values(); 0 if alone

  // On a GPU: agrees on how tensors move between these GPUs, on all ranks at once. Without it the first start() does
  // so, and waits there for every rank of the group. The group must go before its GPU's memory.
  void open(const Context& ctx) const;
  std::string gpu_link() const;  // what open() agreed on, for the log; empty before that

  // Sends and receives all at once; the messages between two ranks go in the same order on both. On a GPU what was
  // started on its stream before comes first, and what is started there after wait() comes later; the host may go on.
  std::unique_ptr<Pending> start(const Context& ctx, std::span<const Message> sends,
                                 std::span<const Message> receives) const;
  void exchange(const Context& ctx, std::span<const Message> sends, std::span<const Message> receives) const;

  // Tensors of the context's arena that all ranks of the group exchange in place, if the options say Direct; otherwise
  // null. An error where their GPUs do not reach each other's memory. On all ranks at once.
  std::shared_ptr<Window> window(const Context& ctx, std::span<const Tensor> tensors) const;

  // mine [n] of every rank -> all [size · n], in rank order. `mine` may be its own part of `all`. On a CPU a small one
  // takes ⌈log2 size⌉ messages of a rank, as values() does.
  void all_gather(const Context& ctx, const Tensor& mine, const Tensor& all) const;
  // partial_sums [size · n] (fp32, fp64 or bf16) -> sum [n] of part `rank` of every rank's partial sums. Parts are
  // equal.
  void reduce_scatter_sum(const Context& ctx, const Tensor& partial_sums, const Tensor& sum) const;
  // x := Σ over ranks of x, in rank order whatever the way: small sums in one round, in which every rank gets all
  // partial sums; others in two, each rank adding a slice up, so that what a rank sends does not grow with the group.
  void all_reduce_sum(const Context& ctx, const Tensor& x) const;
  void send(const Context& ctx, int peer, const Tensor& x) const;
  void receive(const Context& ctx, int peer, const Tensor& x) const;

  // A small value of every rank, in rank order; in host memory whatever the device, and nothing waits for a GPU. A rank
  // sends ⌈log2 size⌉ messages (comm/bruck_all_gather.h).
  template <class T>
  std::vector<T> values(const T& mine) const {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> all(static_cast<size_t>(size_), mine);
    gather_on_host(all.data(), sizeof(T));
    return all;
  }
  void barrier() const { values('b'); }

 private:
  void all_gather_now(const Context& ctx, const Tensor& mine, const Tensor& all) const;
  Tensor row_of_other(const Tensor& rows, int rank) const;
  void sum_in_one_round(const Context& ctx, const Tensor& x) const;
  void sum_by_slices(const Context& ctx, const Tensor& x) const;
  std::shared_ptr<Peers> find_peers(const Context& ctx) const;
  void gather_on_host(void* all, size_t bytes_each) const;  // own part filled in

  HostLink host_;
  int size_ = 1, rank_ = 0;
  GroupOptions options_;
  Exposed awaited_ = Exposed::Gradients;
  mutable uint64_t bytes_ = 0;                    // that messages held, or would hold
  mutable std::shared_ptr<SharedLink> gpu_link_;  // empty until opened, and on the CPU
  struct Reach {
    std::shared_ptr<Peers> peers;  // null where there are none
  };
  mutable std::shared_ptr<const Reach> reach_;  // null until asked for
};

}  // namespace agoq::comm
