// Seconds between points of a device's work.
#pragma once

#include <chrono>
#include <vector>

#include "device/context.h"

struct CUevent_st;

namespace agoq {

// On a GPU marks are events in its stream, and nothing waits for them until they are asked for; on the CPU, the clock.
class Stopwatch {
 public:
  explicit Stopwatch(const Context& ctx) : ctx_(ctx) {}
  ~Stopwatch();
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  void mark();
  // Seconds from each mark to the next; waits for the last one and begins anew.
  std::vector<double> take();

 private:
  const Context& ctx_;
  size_t marks_ = 0;
  std::vector<std::chrono::steady_clock::time_point> times_;  // of the CPU
  std::vector<CUevent_st*> events_;                           // of a GPU, kept for later marks
};

}  // namespace agoq
