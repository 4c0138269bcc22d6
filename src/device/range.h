// Names for stretches of the host's work, which NVIDIA's profilers show over the kernels that it starts (NVTX).
#pragma once

#include <cstdint>
#include <cstdio>

#include "device/gpu.h"

namespace agoq {

namespace cuda {
void push_range(const char* name);
void pop_range();
}  // namespace cuda

// From construction to destruction; inside others of the same thread. Without a profiler it costs nanoseconds, in a
// build without CUDA nothing.
class ProfilerRange {
 public:
  explicit ProfilerRange(const char* name) {
    if constexpr (kCudaBuild) cuda::push_range(name);
  }
  // "layer forward 12"
  ProfilerRange(const char* name, int64_t number) {
    if constexpr (kCudaBuild) {
      char text[64];
      std::snprintf(text, sizeof(text), "%s %lld", name, static_cast<long long>(number));
      cuda::push_range(text);
    }
  }
  ~ProfilerRange() {
    if constexpr (kCudaBuild) cuda::pop_range();
  }
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
};

}  // namespace agoq
