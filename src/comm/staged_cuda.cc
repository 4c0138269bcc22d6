#include "comm/staged_cuda.h"

#include <algorithm>

#include "device/cuda.h"

namespace agoq::comm {
namespace {

constexpr size_t kAlignment = 64;             // of a message
constexpr size_t kGranule = size_t{1} << 20;  // of a buffer

size_t rounded_up(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// Pinned memory for the messages of one exchange.
class Room {
 public:
  explicit Room(size_t capacity) : capacity_(capacity) {
    AGOQ_CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&base_), capacity));
  }
  ~Room() { cudaFreeHost(base_); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  size_t capacity() const { return capacity_; }
  void clear() { used_ = 0; }
  Tensor take(const Tensor& like) {
    const Tensor place{base_ + used_, like.dtype, Device::Cpu, like.shape};
    used_ += rounded_up(like.bytes(), kAlignment);
    return place;
  }

  bool busy = false;    // from the start of an exchange until wait() has returned
  cuda::Event emptied;  // behind the last copy out of it

 private:
  uint8_t* base_ = nullptr;
  size_t capacity_;
  size_t used_ = 0;
};

size_t room_for(std::span<const Message> messages) {
  size_t bytes = 0;
  for (const Message& m : messages) bytes += rounded_up(m.data.bytes(), kAlignment);
  return bytes;
}

// What has come is copied to the GPU by wait(). Until then the room belongs to the transport, even if nobody waits.
class StagedExchange : public Pending {
 public:
  struct Arrival {
    Tensor from, to;
  };
  StagedExchange(std::unique_ptr<Pending> on_host, cudaStream_t stream, Room& room, std::vector<Arrival> arrivals)
      : on_host_(std::move(on_host)), stream_(stream), room_(&room), arrivals_(std::move(arrivals)) {}

  void wait() override {
    on_host_->wait();
    for (const auto& [from, to] : arrivals_)
      AGOQ_CUDA_CHECK(cudaMemcpyAsync(to.data, from.data, to.bytes(), cudaMemcpyHostToDevice, stream_));
    room_->emptied.record(stream_);
    room_->busy = false;
  }
  bool ready() override { return on_host_->ready(); }

 private:
  std::unique_ptr<Pending> on_host_;
  cudaStream_t stream_;
  Room* room_;
  std::vector<Arrival> arrivals_;
};

class StagedLink : public GpuLink {
 public:
  StagedLink(HostLink host, std::string why) : host_(std::move(host)), why_(std::move(why)) {}

  // The transport reads memory, not streams: the host waits here for what is sent.
  std::unique_ptr<Pending> start(const Context& ctx, std::span<const Message> sends,
                                 std::span<const Message> receives) override {
    Room& room = take_room(ctx, room_for(sends) + room_for(receives));
    std::vector<Message> out, in;
    for (size_t i = 0; i < sends.size(); ++i) {
      const Tensor& data = sends[i].data;
      const bool again = i > 0 && data.data == sends[i - 1].data.data && data.bytes() == sends[i - 1].data.bytes();
      out.push_back({sends[i].peer, again ? out.back().data : room.take(data)});
      if (again) continue;
      AGOQ_CUDA_CHECK(
          cudaMemcpyAsync(out.back().data.data, data.data, data.bytes(), cudaMemcpyDeviceToHost, cuda::stream(ctx)));
    }
    std::vector<StagedExchange::Arrival> arrivals;
    for (const Message& m : receives) {
      in.push_back({m.peer, room.take(m.data)});
      arrivals.push_back({in.back().data, m.data});
    }
    if (!sends.empty()) ctx.gpu().wait_for_stream(cuda::stream(ctx));
    return std::make_unique<StagedExchange>(host_.start(out, in), cuda::stream(ctx), room, std::move(arrivals));
  }

  bool all_gather(const Context&, const Tensor&, const Tensor&) override { return false; }
  uint64_t bytes_sent() const override { return 0; }
  std::string description() const override { return "host memory: " + why_; }

 private:
  // The smallest idle room that is large enough; if there is none, the largest idle one is replaced.
  Room& take_room(const Context& ctx, size_t bytes) {
    std::sort(rooms_.begin(), rooms_.end(), [](const auto& a, const auto& b) { return a->capacity() < b->capacity(); });
    const auto fits = [&](const auto& room) { return !room->busy && room->capacity() >= bytes; };
    auto room = std::find_if(rooms_.begin(), rooms_.end(), fits);
    if (room == rooms_.end()) {
      const auto idle = std::find_if(rooms_.rbegin(), rooms_.rend(), [](const auto& r) { return !r->busy; });
      if (idle != rooms_.rend()) {
        ctx.gpu().wait_for((*idle)->emptied.get());
        rooms_.erase(std::next(idle).base());
      }
      room = rooms_.insert(rooms_.end(), std::make_unique<Room>(rounded_up(std::max<size_t>(bytes, 1), kGranule)));
    }
    ctx.gpu().wait_for((*room)->emptied.get());
    (*room)->busy = true;
    (*room)->clear();
    return **room;
  }

  HostLink host_;
  std::string why_;
  std::vector<std::unique_ptr<Room>> rooms_;
};

}  // namespace

std::shared_ptr<GpuLink> open_staged(HostLink host, std::string why) {
  return std::make_shared<StagedLink>(std::move(host), std::move(why));
}

}  // namespace agoq::comm
