// Wall-clock seconds and floating-point operations by kind of work, for `agoq bench` and the closing summary.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

#include "device/range.h"

namespace agoq {

enum class Work : uint8_t { Gemm, Attention, Codec, Elementwise, Optimizer, Count };

struct Profile {
  std::array<double, static_cast<size_t>(Work::Count)> seconds{};
  double gemm_flops = 0;
  double& operator[](Work kind) { return seconds[static_cast<size_t>(kind)]; }
};

// Adds the host's time from construction to destruction to one kind of work, and names it for profilers: by the
// function that it is in, unless another name is given. Nearly free when nobody profiles.
class Timed {
 public:
  using Clock = std::chrono::steady_clock;
  Timed(Profile* profile, Work kind, const char* op = __builtin_FUNCTION())
      : range_(op), profile_(profile), kind_(kind) {
    if (profile_) start_ = Clock::now();
  }
  ~Timed() {
    if (profile_) (*profile_)[kind_] += std::chrono::duration<double>(Clock::now() - start_).count();
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  ProfilerRange range_;
  Profile* profile_;
  Work kind_;
  Clock::time_point start_;
};

}  // namespace agoq
