#include "train/config/fitted_schedule.h"

#include <algorithm>
#include <cmath>

namespace agoq::train {

void SpeedMeter::step(double seconds) {
  (steps_ == 0 ? first_ : others_) += seconds;
  ++steps_;
}

std::optional<double> SpeedMeter::seconds_per_step() const {
  const double time = 60 * minutes_;
  if (steps_ > 1 && others_ >= time / 20) return others_ / static_cast<double>(steps_ - 1);
  if (steps_ > 0 && first_ + others_ >= time / 5) return (first_ + others_) / static_cast<double>(steps_);
  return std::nullopt;
}

TrainConfig fitted(TrainConfig c, int64_t steps_done, double seconds_per_step, double seconds_left,
                   int64_t micro_batches) {
  // Forward is a third of a step.
  const double evaluation =
      seconds_per_step * static_cast<double>(c.eval_iters) / (3 * static_cast<double>(micro_batches));
  const double with_its_share =
      seconds_per_step + (c.eval_interval > 0 ? evaluation / static_cast<double>(c.eval_interval) : 0);
  const double more = std::max(0.0, std::floor((seconds_left - evaluation) / with_its_share));
  const auto most = static_cast<double>(std::max(c.train_iters - steps_done, int64_t{0}));
  const int64_t iters = steps_done + static_cast<int64_t>(std::min(more, most));
  if (iters >= c.train_iters) return c;
  const double share = static_cast<double>(iters) / static_cast<double>(c.train_iters);
  const auto scaled = [share](int64_t steps) { return std::llround(share * static_cast<double>(steps)); };
  c.lr_warmup_iters = scaled(c.lr_warmup_iters);
  c.lr_decay_iters = scaled(c.lr_decay_iters);
  c.train_iters = iters;
  return c;
}

}  // namespace agoq::train
