#include "comm/gpu/peers_cuda.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "comm/gpu/peer_kernels_cuda.h"
#include "comm/gpu/side_exchanges_cuda.h"
#include "device/gpu_queues.h"

namespace agoq::comm {
namespace {

using Handle = std::array<char, sizeof(cudaIpcMemHandle_t)>;

// Whether two ranks are threads of a process, or processes of one machine.
struct Home {
  uint64_t process = 0;
  std::array<char, 64> boot{};  // of the machine; empty if it does not say

  static Home here() {
    static const uint64_t token = std::random_device{}() | uint64_t{std::random_device{}()} << 32;
    Home home{token, {}};
    std::string boot;
    std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
    std::copy_n(boot.begin(), std::min(boot.size(), home.boot.size()), home.boot.begin());
    return home;
  }
  bool same_machine(const Home& other) const { return boot == other.boot && boot[0] != 0; }
};

// Whether a call has succeeded that may fail: there are other ways.
bool tried(cudaError_t status) {
  if (status != cudaSuccess) cudaGetLastError();  // or it would be found later, as somebody else's
  return status == cudaSuccess;
}

// A block of a GPU's memory as its rank tells others of it.
struct SharedMemory {
  Home home;
  Gpu::Uuid gpu{};
  Handle handle{};  // zeros if there is none
  uintptr_t address = 0;

  static SharedMemory of(const Gpu& gpu, const Tensor& memory) {
    SharedMemory block{Home::here(), gpu.uuid(), {}, reinterpret_cast<uintptr_t>(memory.data)};
    cudaIpcMemHandle_t handle{};
    if (tried(cudaIpcGetMemHandle(&handle, memory.data))) std::memcpy(block.handle.data(), &handle, sizeof(handle));
    return block;
  }
};

// A block of another rank, where this process sees it.
class Mapped {
 public:
  // Null if it cannot be reached.
  static std::shared_ptr<Mapped> open(const Gpu& gpu, const SharedMemory& block) {
    const Home here = Home::here();
    if (here.process == block.home.process) {  // a process does not open its own handles
      if (gpu.uuid() != block.gpu) return nullptr;
      return std::make_shared<Mapped>(reinterpret_cast<void*>(block.address), false);
    }
    if (!here.same_machine(block.home) || block.handle == Handle{}) return nullptr;
    cudaIpcMemHandle_t handle{};
    std::memcpy(&handle, block.handle.data(), sizeof(handle));
    void* memory = nullptr;
    if (!tried(cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess))) return nullptr;
    return std::make_shared<Mapped>(memory, true);
  }
  Mapped(void* memory, bool opened) : memory_(static_cast<uint8_t*>(memory)), opened_(opened) {}
  ~Mapped() {
    if (opened_) cudaIpcCloseMemHandle(memory_);
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  uint8_t* at(size_t offset) const { return memory_ + offset; }

 private:
  uint8_t* memory_;
  bool opened_;
};

// A word that the host writes and kernels read.
class HostFlag {
 public:
  HostFlag() {
    void* memory = nullptr;
    AGOQ_CUDA_CHECK(cudaHostAlloc(&memory, sizeof(uint32_t), cudaHostAllocMapped));
    word_ = static_cast<uint32_t*>(memory);
    *word_ = 0;
  }
  ~HostFlag() { cudaFreeHost(const_cast<uint32_t*>(word_)); }
  HostFlag(const HostFlag&) = delete;
  HostFlag& operator=(const HostFlag&) = delete;

  void raise() noexcept { *word_ = 1; }
  bool raised() const { return *word_ != 0; }
  const volatile uint32_t* word() const { return word_; }

 private:
  volatile uint32_t* word_ = nullptr;
};

class PeerLink : public Peers, public Gpu::Watch, public std::enable_shared_from_this<PeerLink> {
 public:
  PeerLink(Gpu& gpu, const ProcessGroup& group, const PeerOptions& options)
      : options_(options),
        size_(group.size()),
        rank_(group.rank()),
        counts_(gpu, sizeof(uint32_t) * kCountStride * static_cast<size_t>(group.size())) {}

  // A rank that ends by an error does not wait for the others, and freeing memory would.
  ~PeerLink() override {
    if (std::uncaught_exceptions() > 0) abandon();
  }

  // Whether this rank reaches all others.
  bool connect(Gpu& gpu, const ProcessGroup& group) {
    const Tensor words = counts_.memory();
    cuda::load_peer_kernels();
    gpu.synchronize();  // they are zero before anyone writes to them
    blocks_ = map(gpu, group, words);
    if (blocks_.empty()) return false;
    for (int i = 0; i < size_; ++i) {
      if (i == rank_) continue;
      const auto word = [](int of) { return sizeof(uint32_t) * kCountStride * static_cast<size_t>(of); };
      barrier_.arrived[barrier_.peers] = reinterpret_cast<uint32_t*>(words.raw() + word(i));
      barrier_.told[barrier_.peers] = reinterpret_cast<uint32_t*>(blocks_[static_cast<size_t>(i)]->at(word(rank_)));
      ++barrier_.peers;
    }
    barrier_.stop = stop_.word();
    return true;
  }

  std::shared_ptr<Window> open(const Context& ctx, const ProcessGroup& group, std::span<const Tensor> tensors) override;
  uint64_t bytes_sent() const override { return bytes_sent_; }

  // Kernels on memory of all, between two barriers.
  template <class Kernel>
  std::unique_ptr<Pending> run(const Context& ctx, const Kernel& kernel, size_t bytes) {
    require(!stop_.raised(), "this group of {} ranks was given up after an error", size_);
    bytes_sent_ += bytes;
    const Context beside = exchanges_.begin(ctx);
    meet(beside);
    cuda::launch(beside.stream(), kernel);
    meet(beside);
    return exchanges_.end(ctx, beside);
  }

  void check() override {
    if (options_.transport) options_.transport->check();
    exchanges_.require_progress(options_.timeout, size_);
  }
  void abandon() noexcept override { stop_.raise(); }

 private:
  static constexpr size_t kCountStride = 32;  // words from one count to the next: a line of a cache

  void meet(const Context& beside) {
    ++barrier_.count;
    cuda::launch(beside.stream(), barrier_);
  }

  // The blocks of all ranks, this one's null; none, on all ranks alike, if one cannot be reached.
  std::vector<std::shared_ptr<Mapped>> map(const Gpu& gpu, const ProcessGroup& group, const Tensor& memory) {
    std::vector<std::shared_ptr<Mapped>> mapped;
    bool all = true;
    const std::vector<SharedMemory> blocks = group.values(SharedMemory::of(gpu, memory));
    for (int i = 0; i < size_; ++i) {
      const SharedMemory& block = blocks[static_cast<size_t>(i)];
      std::weak_ptr<Mapped>& known = known_[{i, block.address, block.handle}];
      mapped.push_back(i == rank_ ? nullptr : known.lock());
      if (i != rank_ && !mapped.back()) known = mapped.back() = Mapped::open(gpu, block);
      all = all && (i == rank_ || mapped.back());
    }
    const std::vector<char> reached = group.values(all ? 'y' : 'n');
    if (std::count(reached.begin(), reached.end(), 'n') > 0) mapped.clear();
    return mapped;
  }

  PeerOptions options_;
  int size_, rank_;
  Arena counts_;  // of barriers, one for each rank
  HostFlag stop_;
  std::map<std::tuple<int, uintptr_t, Handle>, std::weak_ptr<Mapped>> known_;  // while a window has them
  std::vector<std::shared_ptr<Mapped>> blocks_;                                // of the counts
  cuda::BarrierArgs barrier_;
  SideExchanges exchanges_;
  uint64_t bytes_sent_ = 0;
};

class PeerWindow : public Window {
 public:
  struct PeerTensor {
    Tensor own;                   // all parts
    std::vector<uint8_t*> peers;  // the same tensor of all ranks
  };
  PeerWindow(std::shared_ptr<PeerLink> link, int rank, std::vector<PeerTensor> parts,
             std::vector<std::shared_ptr<Mapped>> memory)
      : link_(std::move(link)), memory_(std::move(memory)) {
    const auto size = static_cast<int>(parts.front().peers.size());
    all_to_all_.peers = all_gather_.peers = size - 1;
    all_to_all_.tensors = all_gather_.tensors = static_cast<int>(parts.size());
    for (size_t t = 0; t < parts.size(); ++t) {
      const int64_t bytes = static_cast<int64_t>(parts[t].own.bytes()) / size;
      bytes_ += static_cast<size_t>(bytes * (size - 1));
      all_gather_.own[t] = parts[t].own.raw() + rank * bytes;
      all_gather_.bytes[t] = bytes;
      for (int i = 1; i < size; ++i) {  // each begins with its neighbour
        const int peer = (rank + i) % size;
        uint8_t* const there = parts[t].peers[static_cast<size_t>(peer)] + rank * bytes;
        all_gather_.to[t][i - 1] = there;
        all_to_all_.stretches[i - 1][t] = half({parts[t].own.raw() + peer * bytes, there, bytes}, rank < peer);
      }
    }
  }

  std::unique_ptr<Pending> all_to_all(const Context& ctx) override { return link_->run(ctx, all_to_all_, bytes_); }
  std::unique_ptr<Pending> all_gather(const Context& ctx) override { return link_->run(ctx, all_gather_, bytes_); }

 private:
  // Of a pair of ranks each swaps one half of the bytes, so that both directions of a link carry as much.
  static cuda::BytePair half(const cuda::BytePair& whole, bool first) {
    constexpr int64_t kLine = 128;
    const int64_t middle = whole.bytes / 2 / kLine * kLine;
    if (first) return {whole.own, whole.peers, middle};
    return {whole.own + middle, whole.peers + middle, whole.bytes - middle};
  }

  std::shared_ptr<PeerLink> link_;
  std::vector<std::shared_ptr<Mapped>> memory_;
  cuda::AllToAllArgs all_to_all_;
  cuda::AllGatherArgs all_gather_;
  size_t bytes_ = 0;  // that go to others
};

std::shared_ptr<Window> PeerLink::open(const Context& ctx, const ProcessGroup& group, std::span<const Tensor> tensors) {
  require(!tensors.empty() && tensors.size() <= cuda::kMostTensors, "a window of {} tensors: 1 to {} can be",
          tensors.size(), cuda::kMostTensors);
  // Other processes open whole allocations, and where in one the caller's memory begins is not known here.
  require(!ctx.arena().foreign(), "--gpu-transport direct needs memory that AGoQ has reserved itself; take auto");
  const Tensor arena = ctx.arena().memory();
  std::vector<std::shared_ptr<Mapped>> memory = map(ctx.gpu(), group, arena);
  require(!memory.empty(), "--gpu-transport direct: the memory of a rank cannot be reached; take auto");
  std::vector<PeerWindow::PeerTensor> parts;
  for (const Tensor& tensor : tensors) {
    require(tensor.raw() >= arena.raw() && tensor.raw() + tensor.bytes() <= arena.raw() + arena.bytes(),
            "a window on memory that is not of the context's arena");
    require(tensor.bytes() % static_cast<size_t>(size_) == 0, "a window of {} bytes in parts for {} ranks",
            tensor.bytes(), size_);
    struct ArenaRange {
      size_t offset = 0, bytes = 0;
    };
    const auto places = group.values(ArenaRange{static_cast<size_t>(tensor.raw() - arena.raw()), tensor.bytes()});
    PeerWindow::PeerTensor part{tensor, {}};
    for (size_t i = 0; i < places.size(); ++i) {
      require(places[i].bytes == tensor.bytes(), "a window has {} bytes here and {} on rank {} of the group",
              tensor.bytes(), places[i].bytes, i);
      part.peers.push_back(memory[i] ? memory[i]->at(places[i].offset) : nullptr);
    }
    parts.push_back(std::move(part));
  }
  return std::make_shared<PeerWindow>(shared_from_this(), rank_, std::move(parts), std::move(memory));
}

}  // namespace

std::shared_ptr<Peers> open_peers(Gpu& gpu, const ProcessGroup& group, const PeerOptions& options) {
  if (group.size() - 1 > cuda::kMostPeers) return nullptr;
  require_gpu_queues();
  gpu.make_current();
  const auto link = std::make_shared<PeerLink>(gpu, group, options);
  if (!link->connect(gpu, group)) return nullptr;
  gpu.watch(link);
  return link;
}

}  // namespace agoq::comm
