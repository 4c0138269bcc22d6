#include "comm/process_group.h"

#include <algorithm>

#include "comm/bruck_all_gather.h"
#include "comm/gpu/nccl_cuda.h"
#include "comm/gpu/peers_cuda.h"
#include "comm/gpu/staged_cuda.h"
#include "comm/sum.h"
#include "device/transfer.h"

namespace agoq::comm {
namespace {

// Part i of n equal ones of a contiguous tensor.
Tensor part_of(const Tensor& whole, int i, int n) {
  const int64_t count = whole.count() / n;
  return whole.view({n, count}).row_range(i, i + 1).view({count});
}

constexpr int64_t kSliceAlignment = 64;  // numbers, so that sums are read in whole words

// What needs no waiting.
class Done : public Pending {
 public:
  void wait() override {}
  bool ready() override { return true; }
};

}  // namespace

ProcessGroup::ProcessGroup(Transport& transport, std::vector<int> ranks, uint32_t channel, const GroupOptions& options,
                           std::shared_ptr<SharedLink> link)
    : host_{&transport, std::move(ranks), channel},
      size_(static_cast<int>(host_.ranks.size())),
      options_(options),
      gpu_link_(std::move(link)) {
  const auto own = std::find(host_.ranks.begin(), host_.ranks.end(), transport.rank());
  require(own != host_.ranks.end(), "rank {} makes a group that it is not in: {}", transport.rank(),
          fmt::join(host_.ranks, ", "));
  rank_ = static_cast<int>(own - host_.ranks.begin());
}

ProcessGroup ProcessGroup::planned(int size, int rank) {
  ProcessGroup group;
  group.size_ = size;
  group.rank_ = rank;
  return group;
}

uint64_t ProcessGroup::bytes_sent() const {
  return bytes_ + (reach_ && reach_->peers ? reach_->peers->bytes_sent() : 0);
}

void ProcessGroup::open(const Context& ctx) const {
  if (alone() || !ctx.cuda() || gpu_link_->link) return;
  if constexpr (kCudaBuild) {
    const std::string why = why_staged(options_, values(ctx.gpu().uuid()));
    if constexpr (kNcclBuild) {
      if (why.empty()) {
        const NcclId id = values(rank_ == 0 ? make_nccl_id() : NcclId{}).front();
        gpu_link_->link = open_nccl(ctx.gpu(), {id, size_, rank_, options_.timeout, host_.transport});
        return;
      }
    }
    gpu_link_ = std::make_shared<SharedLink>(SharedLink{open_staged(host_, why)});
  }
}

std::string ProcessGroup::gpu_link() const {
  if (!gpu_link_ || !gpu_link_->link) return "";
  return gpu_link_->link->description() +
         (reach_ && reach_->peers ? "; gradients in place, in each other's memory" : "");
}

std::shared_ptr<Window> ProcessGroup::window(const Context& ctx, std::span<const Tensor> tensors) const {
  if (alone() || !ctx.cuda()) return nullptr;
  open(ctx);
  if (!reach_) reach_ = std::make_shared<const Reach>(Reach{find_peers(ctx)});
  return reach_->peers ? reach_->peers->open(ctx, *this, tensors) : nullptr;
}

std::shared_ptr<Peers> ProcessGroup::find_peers(const Context& ctx) const {
  if constexpr (kCudaBuild) {
    if (options_.gpu_transport != GpuTransport::Direct) return nullptr;
    require_direct_fits(size_);
    std::shared_ptr<Peers> peers = open_peers(ctx.gpu(), *this, {options_.timeout, host_.transport});
    require(peers != nullptr,
            "--gpu-transport direct: the {} GPUs of a group do not reach each other's memory; take auto", size_);
    return peers;
  }
  return nullptr;
}

std::unique_ptr<Pending> ProcessGroup::start(const Context& ctx, std::span<const Message> sends,
                                             std::span<const Message> receives) const {
  if (alone()) return std::make_unique<Done>();
  for (const Message& message : sends) bytes_ += message.data.bytes();
  if (ctx.meta()) return std::make_unique<Done>();
  require(host_.transport != nullptr, "a planned group of {} ranks was asked to move data", size_);
  open(ctx);
  return ctx.cuda() ? gpu_link_->link->start(ctx, sends, receives) : host_.start(sends, receives);
}

void ProcessGroup::exchange(const Context& ctx, std::span<const Message> sends,
                            std::span<const Message> receives) const {
  expose(ctx, awaited_, [&] { start(ctx, sends, receives)->wait(); });
}

void ProcessGroup::all_gather(const Context& ctx, const Tensor& mine, const Tensor& all) const {
  require(mine.dtype == all.dtype && mine.count() * size_ == all.count(),
          "all_gather of {} {} over {} ranks does not fill {} {}", name_of(mine.dtype), mine.shape.text(), size_,
          name_of(all.dtype), all.shape.text());
  expose(ctx, awaited_, [&] { all_gather_now(ctx, mine, all); });
}

void ProcessGroup::all_gather_now(const Context& ctx, const Tensor& mine, const Tensor& all) const {
  open(ctx);
  const uint64_t sent = mine.bytes() * static_cast<uint64_t>(size_ - 1);
  if (ctx.cuda() && !alone() && gpu_link_->link->all_gather(ctx, mine, all)) {
    bytes_ += sent;
    return;
  }
  const Tensor own = part_of(all, rank_, size_);
  const auto fill_in_own = [&] {
    if (own.data != mine.data) copy(ctx, mine.view({mine.count()}), own);
  };
  const bool in_host_memory = host_.transport && !ctx.cuda() && !ctx.meta();
  if (in_host_memory && all.bytes() <= kMostBytesOfSmall) {
    fill_in_own();
    bytes_ += sent;
    return gather_on_host(all.data, mine.bytes());
  }
  std::vector<Message> sends, receives;
  for (int i = 0; i < size_; ++i) {
    if (i == rank_) continue;
    sends.push_back({i, mine});
    receives.push_back({i, part_of(all, i, size_)});
  }
  const auto pending = start(ctx, sends, receives);
  fill_in_own();
  pending->wait();
}

// Of a tensor with a row for each rank but this one.
Tensor ProcessGroup::row_of_other(const Tensor& rows, int rank) const {
  const int64_t row = rank - (rank > rank_);
  return rows.row_range(row, row + 1);
}

void ProcessGroup::reduce_scatter_sum(const Context& ctx, const Tensor& partial_sums, const Tensor& sum) const {
  require(partial_sums.dtype == sum.dtype && partial_sums.count() == sum.count() * size_,
          "reduce_scatter of {} {} over {} ranks does not give {} {}", name_of(partial_sums.dtype),
          partial_sums.shape.text(), size_, name_of(sum.dtype), sum.shape.text());
  const int64_t count = sum.count();
  Scope scope(ctx);
  const Tensor received = alone() ? Tensor{} : ctx.empty(partial_sums.dtype, {size_ - 1, count});
  std::vector<Message> sends, receives;
  for (int i = 0; i < size_; ++i) {
    if (i == rank_) continue;
    sends.push_back({i, part_of(partial_sums, i, size_)});
    receives.push_back({i, row_of_other(received, i)});
  }
  exchange(ctx, sends, receives);
  comm::sum(ctx, {received, part_of(partial_sums, rank_, size_), rank_}, sum);
}

void ProcessGroup::all_reduce_sum(const Context& ctx, const Tensor& x) const {
  if (alone()) return;
  const size_t of_others = x.bytes() * static_cast<size_t>(size_ - 1);
  of_others <= kMostBytesOfSmall ? sum_in_one_round(ctx, x) : sum_by_slices(ctx, x);
}

void ProcessGroup::sum_in_one_round(const Context& ctx, const Tensor& x) const {
  Scope scope(ctx);
  const Tensor all = ctx.empty(x.dtype, {size_, x.count()});
  all_gather(ctx, x, all);
  comm::sum(ctx, {all, {}, size_}, x);
}

// Rank i gets slice i of all ranks, adds it up, and gives the sum to all.
void ProcessGroup::sum_by_slices(const Context& ctx, const Tensor& x) const {
  const int64_t count = x.count(), unit = size_ * kSliceAlignment, each = (count + unit - 1) / unit * kSliceAlignment;
  const auto slice = [&](int rank) {
    return x.view({count, 1}).row_range(std::min(each * rank, count), std::min(each * (rank + 1), count));
  };
  const Tensor own = slice(rank_);
  Scope scope(ctx);
  const Tensor received = ctx.empty(x.dtype, {size_ - 1, own.count()});
  std::vector<Message> slices, to_add, sums;  // slices of others: sent as partial sums, received as sums
  for (int i = 0; i < size_; ++i) {
    if (i == rank_) continue;
    if (own.count() > 0) to_add.push_back({i, row_of_other(received, i)}), sums.push_back({i, own});
    if (slice(i).count() > 0) slices.push_back({i, slice(i)});
  }
  exchange(ctx, slices, to_add);
  if (own.count() > 0) comm::sum(ctx, {received, own, rank_}, own);
  exchange(ctx, sums, slices);
}

void ProcessGroup::send(const Context& ctx, int peer, const Tensor& x) const {
  const Message message{peer, x};
  exchange(ctx, {&message, 1}, {});
}

void ProcessGroup::receive(const Context& ctx, int peer, const Tensor& x) const {
  const Message message{peer, x};
  exchange(ctx, {}, {&message, 1});
}

void ProcessGroup::gather_on_host(void* all, size_t bytes_each) const {
  if (alone() || !host_.transport) return;
  std::vector<std::span<uint8_t>> parts;
  for (size_t i = 0; i < host_.ranks.size(); ++i)
    parts.emplace_back(static_cast<uint8_t*>(all) + i * bytes_each, bytes_each);
  bruck_all_gather(host_, rank_, parts);
}

}  // namespace agoq::comm
