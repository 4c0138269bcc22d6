#include "device/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "device/context.h"

namespace agoq {
namespace {

size_t aligned(size_t bytes) {
  return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
}

}  // namespace

Arena::Arena(Device device, size_t capacity) : device_(device), capacity_(device == Device::Meta ? 0 : capacity) {
  require(device != Device::Cuda, "memory of a GPU is reserved on that GPU: Arena(gpu, capacity)");
  if (capacity_ == 0) return;
  void* memory = mmap(nullptr, capacity_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(memory != MAP_FAILED, "cannot reserve {} bytes of memory for the arena: {}", capacity_, std::strerror(errno));
  base_ = static_cast<uint8_t*>(memory);
}

Arena::Arena(Gpu& gpu, size_t capacity) : device_(Device::Cuda), gpu_(&gpu), capacity_(capacity) {
  if constexpr (kCudaBuild) {
    if (capacity_ > 0) base_ = static_cast<uint8_t*>(gpu.reserve(capacity_));
  } else {
    fail("this build has no CUDA backend; use --device cpu");
  }
}

Arena::Arena(Device device, ForeignMemory memory) : device_(device) {
  require(device == Device::Cpu, "memory of the caller is the host's, or that of a GPU: Arena(gpu, memory)");
  use(memory);
}

Arena::Arena(Gpu& gpu, ForeignMemory memory) : device_(Device::Cuda), gpu_(&gpu) {
  if constexpr (kCudaBuild) {
    if (memory.bytes > 0) gpu.require_own(memory.data);
  } else {
    fail("this build has no CUDA backend; use --device cpu");
  }
  use(memory);
}

void Arena::use(ForeignMemory memory) {
  require(memory.data != nullptr || memory.bytes == 0, "{} bytes of memory for an arena are at no address",
          memory.bytes);
  require(reinterpret_cast<uintptr_t>(memory.data) % kAlignment == 0,
          "memory for an arena begins at {}, which is not a multiple of {} bytes", memory.data, kAlignment);
  base_ = static_cast<uint8_t*>(memory.data);
  capacity_ = memory.bytes / kAlignment * kAlignment;  // temporaries are counted from the end
  foreign_ = true;
}

Arena::~Arena() {
  if (!base_ || foreign_) return;
  if constexpr (kCudaBuild) {
    if (gpu_) {
      gpu_->release(base_);
      return;
    }
  }
  munmap(base_, capacity_);
}

Tensor Arena::allocate(Owner owner, DType dtype, Shape shape) {
  Tensor tensor{nullptr, dtype, device_, shape};
  const size_t bytes = aligned(tensor.bytes());
  if (device_ != Device::Meta) {
    require(bottom_ + bytes + top_ <= capacity_, "arena of {} bytes is full: '{}' asks for {} more", capacity_,
            owner.text(), bytes);
    tensor.data = base_ + bottom_;
  }
  bottom_ += bytes;
  auto known = std::find_if(owners_.begin(), owners_.end(), [&](const OwnerBytes& o) { return o.owner == owner; });
  if (known == owners_.end()) known = owners_.insert(owners_.end(), OwnerBytes{owner, 0});
  known->bytes += bytes;
  return tensor;
}

Tensor Arena::push(DType dtype, Shape shape) {
  Tensor tensor{nullptr, dtype, device_, shape};
  const size_t bytes = aligned(tensor.bytes());
  if (device_ != Device::Meta) {
    require(bottom_ + top_ + bytes <= capacity_, "arena of {} bytes is full: a temporary {} asks for {} more",
            capacity_, shape.text(), bytes);
    tensor.data = base_ + (capacity_ - top_ - bytes);
  }
  top_ += bytes;
  peak_top_ = std::max(peak_top_, top_);
  return tensor;
}

std::vector<OwnerBytes> Arena::by_owner() const {
  std::vector<OwnerBytes> all = owners_;
  all.push_back({Owner::Workspace, peak_top_});
  return all;
}

Scope::Scope(const Context& ctx) : Scope(ctx.arena()) {}

}  // namespace agoq
