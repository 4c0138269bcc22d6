#include "comm/gpu/staged_cuda.h"

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
class PinnedPool {
 public:
  explicit PinnedPool(size_t capacity) : capacity_(capacity) {
    AGOQ_CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&base_), capacity));
  }
  ~PinnedPool() { cudaFreeHost(base_); }
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;

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

size_t bytes_for(std::span<const Message> messages) {
  size_t bytes = 0;
  for (const Message& m : messages) bytes += rounded_up(m.data.bytes(), kAlignment);
  return bytes;
}

// What has come is copied to the GPU by wait(). Until then the pool belongs to the transport, even if nobody waits.
class StagedExchange : public Pending {
 public:
  struct StagedReceive {
    Tensor from, to;
  };
  StagedExchange(std::unique_ptr<Pending> on_host, cudaStream_t stream, PinnedPool& pool,
                 std::vector<StagedReceive> arrivals)
      : on_host_(std::move(on_host)), stream_(stream), pool_(&pool), arrivals_(std::move(arrivals)) {}

  void wait() override {
    on_host_->wait();
    for (const auto& [from, to] : arrivals_)
      AGOQ_CUDA_CHECK(cudaMemcpyAsync(to.data, from.data, to.bytes(), cudaMemcpyHostToDevice, stream_));
    pool_->emptied.record(stream_);
    pool_->busy = false;
  }
  bool ready() override { return on_host_->ready(); }

 private:
  std::unique_ptr<Pending> on_host_;
  cudaStream_t stream_;
  PinnedPool* pool_;
  std::vector<StagedReceive> arrivals_;
};

class StagedLink : public GpuLink {
 public:
  StagedLink(HostLink host, std::string why) : host_(std::move(host)), why_(std::move(why)) {}

  // The transport reads memory, not streams: the host waits here for what is sent.
  std::unique_ptr<Pending> start(const Context& ctx, std::span<const Message> sends,
                                 std::span<const Message> receives) override {
    PinnedPool& pool = take_pool(ctx, bytes_for(sends) + bytes_for(receives));
    std::vector<Message> out, in;
    for (size_t i = 0; i < sends.size(); ++i) {
      const Tensor& data = sends[i].data;
      const bool again = i > 0 && data.data == sends[i - 1].data.data && data.bytes() == sends[i - 1].data.bytes();
      out.push_back({sends[i].peer, again ? out.back().data : pool.take(data)});
      if (again) continue;
      AGOQ_CUDA_CHECK(
          cudaMemcpyAsync(out.back().data.data, data.data, data.bytes(), cudaMemcpyDeviceToHost, cuda::stream(ctx)));
    }
    std::vector<StagedExchange::StagedReceive> arrivals;
    for (const Message& m : receives) {
      in.push_back({m.peer, pool.take(m.data)});
      arrivals.push_back({in.back().data, m.data});
    }
    if (!sends.empty()) ctx.gpu().wait_for_stream(cuda::stream(ctx));
    return std::make_unique<StagedExchange>(host_.start(out, in), cuda::stream(ctx), pool, std::move(arrivals));
  }

  bool all_gather(const Context&, const Tensor&, const Tensor&) override { return false; }
  std::string description() const override { return "host memory: " + why_; }

 private:
  // The smallest idle pool that is large enough; if there is none, the largest idle one is replaced.
  PinnedPool& take_pool(const Context& ctx, size_t bytes) {
    std::sort(pools_.begin(), pools_.end(), [](const auto& a, const auto& b) { return a->capacity() < b->capacity(); });
    const auto fits = [&](const auto& pool) { return !pool->busy && pool->capacity() >= bytes; };
    auto pool = std::find_if(pools_.begin(), pools_.end(), fits);
    if (pool == pools_.end()) {
      const auto idle = std::find_if(pools_.rbegin(), pools_.rend(), [](const auto& r) { return !r->busy; });
      if (idle != pools_.rend()) {
        ctx.gpu().wait_for((*idle)->emptied.get());
        pools_.erase(std::next(idle).base());
      }
      pool =
          pools_.insert(pools_.end(), std::make_unique<PinnedPool>(rounded_up(std::max<size_t>(bytes, 1), kGranule)));
    }
    ctx.gpu().wait_for((*pool)->emptied.get());
    (*pool)->busy = true;
    (*pool)->clear();
    return **pool;
  }

  HostLink host_;
  std::string why_;
  std::vector<std::unique_ptr<PinnedPool>> pools_;
};

}  // namespace

std::shared_ptr<GpuLink> open_staged(HostLink host, std::string why) {
  return std::make_shared<StagedLink>(std::move(host), std::move(why));
}

}  // namespace agoq::comm
