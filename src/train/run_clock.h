// What the time says: whether a run should save now, or end. Rank 0 asks it and tells the others.
#pragma once

#include <chrono>

namespace agoq::train {

class RunClock {
 public:
  using Clock = std::chrono::steady_clock;

  // Minutes; 0: never. Starts to count at once.
  RunClock(double save_minutes, double exit_minutes) : save_minutes_(save_minutes), exit_minutes_(exit_minutes) {}

  bool save_is_due() const { return is_past(save_minutes_, last_save_); }
  bool time_is_up() const { return is_past(exit_minutes_, start_); }
  void save_begins() { last_save_ = Clock::now(); }

 private:
  static bool is_past(double minutes, Clock::time_point since) {
    using Minutes = std::chrono::duration<double, std::ratio<60>>;
    return minutes > 0 && Minutes(Clock::now() - since).count() >= minutes;
  }

  double save_minutes_, exit_minutes_;
  Clock::time_point start_ = Clock::now(), last_save_ = start_;
};

}  // namespace agoq::train
