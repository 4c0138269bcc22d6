#include "comm/process_group.h"

#include <algorithm>

#include "comm/sum.h"
#include "device/transfer.h"

namespace agoq::comm {
namespace {

// Part i of n equal ones of a contiguous tensor.
Tensor part_of(const Tensor& whole, int i, int n) {
  const int64_t count = whole.count() / n;
  return whole.view({n, count}).row_range(i, i + 1).view({count});
}

// What needs no waiting.
class Done : public Pending {
 public:
  void wait() override {}
};

}  // namespace

ProcessGroup::ProcessGroup(Transport& transport, std::vector<int> ranks, uint32_t channel)
    : transport_(&transport), ranks_(std::move(ranks)), size_(static_cast<int>(ranks_.size())), channel_(channel) {
  const auto own = std::find(ranks_.begin(), ranks_.end(), transport.rank());
  require(own != ranks_.end(), "rank {} makes a group that it is not in: {}", transport.rank(),
          fmt::join(ranks_, ", "));
  rank_ = static_cast<int>(own - ranks_.begin());
}

ProcessGroup ProcessGroup::planned(int size, int rank) {
  ProcessGroup group;
  group.size_ = size;
  group.rank_ = rank;
  return group;
}

uint64_t ProcessGroup::bytes_sent() const {
  return alone() || !transport_ ? 0 : transport_->bytes_sent(channel_);
}

std::unique_ptr<Pending> ProcessGroup::start(const Context& ctx, std::span<const Message> sends,
                                             std::span<const Message> receives) const {
  if (ctx.meta() || alone()) return std::make_unique<Done>();
  require(transport_ != nullptr, "a planned group of {} ranks was asked to move data", size_);
  require(ctx.device() == Device::Cpu, "groups of GPUs are not there yet");
  std::vector<Send> out;
  std::vector<Receive> in;
  for (const Message& m : sends) out.push_back({world_rank(m.peer), m.data.data, m.data.bytes()});
  for (const Message& m : receives) in.push_back({world_rank(m.peer), m.data.data, m.data.bytes()});
  return transport_->start(channel_, out, in);
}

void ProcessGroup::exchange(const Context& ctx, std::span<const Message> sends,
                            std::span<const Message> receives) const {
  start(ctx, sends, receives)->wait();
}

void ProcessGroup::all_gather(const Context& ctx, const Tensor& mine, const Tensor& all) const {
  require(mine.dtype == all.dtype && mine.count() * size_ == all.count(),
          "all_gather of {} {} over {} ranks does not fill {} {}", name_of(mine.dtype), mine.shape.text(), size_,
          name_of(all.dtype), all.shape.text());
  if (ctx.meta()) return;
  std::vector<Message> sends, receives;
  for (int i = 0; i < size_; ++i) {
    if (i == rank_) continue;
    sends.push_back({i, mine});
    receives.push_back({i, part_of(all, i, size_)});
  }
  const auto pending = start(ctx, sends, receives);
  const Tensor own = part_of(all, rank_, size_);
  if (own.data != mine.data) copy(ctx, mine.view({mine.count()}), own);
  pending->wait();
}

void ProcessGroup::reduce_scatter_sum(const Context& ctx, const Tensor& addends, const Tensor& sum) const {
  require(addends.dtype == sum.dtype && addends.count() == sum.count() * size_,
          "reduce_scatter of {} {} over {} ranks does not give {} {}", name_of(addends.dtype), addends.shape.text(),
          size_, name_of(sum.dtype), sum.shape.text());
  const int64_t count = sum.count();
  Scope scope(ctx);
  const Tensor room = alone() ? Tensor{} : ctx.empty(addends.dtype, {size_ - 1, count});
  std::vector<Tensor> parts;
  std::vector<Message> sends, receives;
  for (int i = 0; i < size_; ++i) {
    if (i == rank_) {
      parts.push_back(part_of(addends, i, size_));
      continue;
    }
    const int64_t row = i - (i > rank_);
    parts.push_back(room.row_range(row, row + 1));
    sends.push_back({i, part_of(addends, i, size_)});
    receives.push_back({i, parts.back()});
  }
  exchange(ctx, sends, receives);
  comm::sum(ctx, parts, sum);
}

void ProcessGroup::all_reduce_sum(const Context& ctx, const Tensor& x) const {
  if (alone()) return;
  Scope scope(ctx);
  const Tensor all = ctx.empty(x.dtype, {size_, x.count()});
  all_gather(ctx, x, all);
  std::vector<Tensor> parts;
  for (int i = 0; i < size_; ++i) parts.push_back(part_of(all, i, size_));
  comm::sum(ctx, parts, x);
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
  if (alone() || !transport_) return;
  auto* const bytes = static_cast<uint8_t*>(all);
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int i = 0; i < size_; ++i) {
    if (i == rank_) continue;
    sends.push_back({world_rank(i), bytes + static_cast<size_t>(rank_) * bytes_each, bytes_each});
    receives.push_back({world_rank(i), bytes + static_cast<size_t>(i) * bytes_each, bytes_each});
  }
  transport_->start(channel_, sends, receives)->wait();
}

}  // namespace agoq::comm
