// Waiting for what can only be asked about.
#pragma once

#include <chrono>
#include <thread>

namespace agoq {

// Between two questions: nothing but a turn for other threads at first, then short sleeps.
class Polling {
 public:
  using Clock = std::chrono::steady_clock;
  using Duration = Clock::duration;

  Duration elapsed() const { return Clock::now() - begin_; }
  void pause() const {
    if (elapsed() < std::chrono::milliseconds(1)) return std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }

 private:
  Clock::time_point begin_ = Clock::now();
};

}  // namespace agoq
