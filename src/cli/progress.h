// What people see while a run goes: one line that is drawn again and again on a terminal, plain lines elsewhere.
#pragma once

#include <cstdint>
#include <string>

#include "train/metrics.h"

namespace agoq::cli {

class Progress {
 public:
  // On a terminal one line that is drawn anew, if `draws`; otherwise a line every `log_interval` steps.
  Progress(int64_t log_interval, bool draws);
  ~Progress();

  // `total`: steps of the run as it is planned now.
  void step(const train::StepMetrics& metrics, int64_t total);
  // A line that stays.
  void say(const std::string& line);
  // Lets the last drawn line stay.
  void finish();

 private:
  double eta_seconds(const train::StepMetrics& metrics, int64_t total);
  void draw(const std::string& line);

  int64_t interval_;
  bool terminal_;
  bool drawn_ = false;       // a line stands that may be drawn over
  double last_drawn_ = -1;   // seconds, of a monotonic clock
  double mean_step_ms_ = 0;  // of the latest steps
};

}  // namespace agoq::cli
