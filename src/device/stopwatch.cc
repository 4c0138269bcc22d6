#include "device/stopwatch.h"

#include "device/stopwatch_cuda.h"

namespace agoq {

Stopwatch::~Stopwatch() {
  if constexpr (kCudaBuild)
    for (CUevent_st* event : events_) cuda::destroy(event);
}

void Stopwatch::mark() {
  const size_t index = marks_++;
  if constexpr (kCudaBuild) {
    if (ctx_.cuda()) {
      if (index == events_.size()) events_.push_back(cuda::create_event());
      cuda::record(ctx_, events_[index]);
      return;
    }
  }
  times_.push_back(std::chrono::steady_clock::now());
}

std::vector<double> Stopwatch::take() {
  std::vector<double> seconds;
  for (size_t i = 1; i < marks_; ++i) {
    if constexpr (kCudaBuild) {
      if (ctx_.cuda()) {
        seconds.push_back(cuda::seconds_between(ctx_, events_[i - 1], events_[i]));
        continue;
      }
    }
    seconds.push_back(std::chrono::duration<double>(times_[i] - times_[i - 1]).count());
  }
  marks_ = 0;
  times_.clear();
  return seconds;
}

}  // namespace agoq
