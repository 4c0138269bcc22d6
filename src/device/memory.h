// Where a process computes, and the one block of memory that it holds there.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>

#include "device/arena.h"

namespace agoq {

class DeviceMemory {
 public:
  // Opens the GPU if `device` is one; an error says what is missing. `local_rank` counts the processes of a machine:
  // they take the visible GPUs in turn, and share them if there are fewer.
  explicit DeviceMemory(Device device, int local_rank = 0) : device_(device) {
    if constexpr (kCudaBuild) {
      if (device == Device::Cuda) gpu_ = std::make_shared<Gpu>(local_rank % std::max(visible_gpus(), 1));
    } else {
      require(device != Device::Cuda, "--device cuda: this build has no CUDA backend; use --device cpu");
    }
  }

  Device device() const { return device_; }
  Gpu* gpu() const { return gpu_.get(); }  // null on the CPU
  // Called once, before step 0, with what a dry run counted.
  Arena& reserve(size_t bytes) { return gpu_ ? arena_.emplace(*gpu_, bytes) : arena_.emplace(device_, bytes); }
  Arena& arena() { return arena_.value(); }
  const Arena& arena() const { return arena_.value(); }
  // For timings and before reading a clock: waits until the device is idle.
  void synchronize() const {
    if constexpr (kCudaBuild)
      if (gpu_) gpu_->synchronize();
  }

 private:
  Device device_;
  std::shared_ptr<Gpu> gpu_;  // shared, so that a build without CUDA needs no destructor of what it never makes
  std::optional<Arena> arena_;
};

}  // namespace agoq
