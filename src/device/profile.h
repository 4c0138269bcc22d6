// Wall-clock seconds and floating-point operations by kind of work, for `agoq bench` and the closing summary.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

namespace agoq {

enum class Work : uint8_t { Gemm, Attention, Codec, Elementwise, Optimizer, Count };

struct Profile {
  std::array<double, static_cast<size_t>(Work::Count)> seconds{};
  double gemm_flops = 0;
  double& operator[](Work kind) { return seconds[static_cast<size_t>(kind)]; }
};

// Adds the time from construction to destruction to one kind of work; free when nobody profiles.
class Timed {
 public:
  using Clock = std::chrono::steady_clock;
  Timed(Profile* profile, Work kind) : profile_(profile), kind_(kind) {
    if (profile_) start_ = Clock::now();
  }
  ~Timed() {
    if (profile_) (*profile_)[kind_] += std::chrono::duration<double>(Clock::now() - start_).count();
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  Profile* profile_;
  Work kind_;
  Clock::time_point start_;
};

}  // namespace agoq
