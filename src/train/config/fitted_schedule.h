// --train-minutes: a run whose number of steps is chosen from the speed of the first ones, so that its schedule ends in
// time on any machine.
#pragma once

#include <cstdint>
#include <optional>

#include "train/config/config.h"

namespace agoq::train {

// Watches the first steps.
class SpeedMeter {
 public:
  explicit SpeedMeter(double minutes) : minutes_(minutes) {}
  void step(double seconds);
  // Seconds of a step, as soon as they can be told: once the steps behind the first, which warms caches up, have taken
  // a twentieth of the time; of slow steps, once all have taken a fifth of it.
  std::optional<double> seconds_per_step() const;

 private:
  double minutes_;
  int64_t steps_ = 0;
  double first_ = 0, others_ = 0;  // seconds
};

// The config with as many steps as fit into `seconds_left` after `steps_done`, evaluations included, at most its own
// train_iters. Warm-up and decay keep their shares of the schedule. `micro_batches` of a step, on each data rank.
TrainConfig fitted(TrainConfig config, int64_t steps_done, double seconds_per_step, double seconds_left,
                   int64_t micro_batches);

}  // namespace agoq::train
