// One GPU: its stream, and what its libraries keep. Only a build with the CUDA backend defines it; everything else gets
// to it through the arena (Context::gpu()), so no CUDA header is needed to pass it around.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <typeindex>
#include <unordered_map>
#include <vector>

#include "device/library_version.h"

struct CUevent_st;
struct CUstream_st;

namespace agoq {

#if defined(AGOQ_CUDA)
inline constexpr bool kCudaBuild = true;
#else
inline constexpr bool kCudaBuild = false;
#endif

// Of a GPU: {9, 0} is Hopper.
struct ComputeCapability {
  int major = 0, minor = 0;
};

class Gpu {
 public:
  // With a compute stream of its own. Error (one line with its remedy) if there is no such GPU, or if GPU or driver is
  // too old.
  explicit Gpu(int ordinal = 0);
  // The compute stream is the caller's; null is CUDA's default stream. It stays the caller's: it must live as long as
  // this object and be a stream of this GPU (error otherwise), and nothing here destroys it. Work goes behind what it
  // has been given and is not waited for: who reads results on another stream orders the two by an event.
  Gpu(int ordinal, CUstream_st* stream);
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  CUstream_st* stream() const { return stream_; }         // the compute stream; null if that is CUDA's default stream
  void synchronize() const { wait_for_stream(stream_); }  // waits for it; throws what failed on it
  void wait_for_stream(CUstream_st* stream) const;        // the same for another one
  void wait_for(CUevent_st* event) const;                 // the same for a point of a stream
  void make_current() const;                              // for a thread that has not used the GPU yet

  // Other processes that work of this GPU waits for. Whenever the host waits, it looks after them.
  class Watch {
   public:
    virtual ~Watch() = default;
    virtual void check() = 0;             // throws if they will not come
    virtual void abandon() noexcept = 0;  // lets the GPU go on without them, with whatever is there
  };
  void watch(std::weak_ptr<Watch> watch);
  void abandon() const noexcept;  // all that is watched

  // Of this GPU and no other, on any machine.
  using Uuid = std::array<uint8_t, 16>;
  const Uuid& uuid() const { return uuid_; }
  const std::string& name() const { return name_; }  // "NVIDIA H200"
  ComputeCapability compute_capability() const { return compute_capability_; }
  int multiprocessors() const { return multiprocessors_; }
  size_t total_memory() const { return total_memory_; }
  size_t free_memory() const;  // what the driver could still give, now

  // The one object of type T on this GPU, made from it on first use: handles and caches of a library.
  template <class T>
  T& library() {
    std::shared_ptr<void>& slot = libraries_[std::type_index(typeid(T))];
    if (!slot) slot = std::make_shared<T>(*this);
    return *static_cast<T*>(slot.get());
  }

  // Device memory, zeroed in the order of the compute stream; only the arena asks for it.
  void* reserve(size_t bytes);
  void release(void* memory) noexcept;
  // Error unless it is memory of this GPU.
  void require_own(const void* memory) const;

 private:
  void open();  // all but the stream
  template <class Reached>
  void wait_until(const Reached& reached) const;

  int ordinal_ = 0;
  CUstream_st* stream_ = nullptr;
  bool owns_stream_ = false;
  std::vector<std::weak_ptr<Watch>> watches_;
  Uuid uuid_{};
  std::string name_;
  ComputeCapability compute_capability_;
  int multiprocessors_ = 0;
  size_t total_memory_ = 0;
  std::unordered_map<std::type_index, std::shared_ptr<void>> libraries_;
};

// The CUDA runtime of this program, which is linked into it.
LibraryVersion cuda_runtime_version();
// How many this process sees (CUDA_VISIBLE_DEVICES); 0 also without a driver.
int visible_gpus();
// Why no GPU can be used here, in one line with its remedy; empty if one can.
std::string why_no_gpu();

}  // namespace agoq
