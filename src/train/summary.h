// How a run ended.
#pragma once

#include <cstdint>
#include <optional>

namespace agoq::train {

struct Summary {
  int64_t step = 0;                  // steps done
  bool stopped_early = false;        // by a signal or --exit-duration-in-mins, after saving
  bool time_is_up = false;           // the latter
  std::optional<double> valid_loss;  // the last one; none if it could not be measured
  double train_loss = 0;             // of the last step
  uint64_t tokens = 0;
  double tokens_per_second = 0;
  double bytes_per_parameter = 0;
  double saved_bytes_per_token_layer = 0;
  int64_t skipped = 0, without_targets = 0;  // steps; the latter of the former
};

}  // namespace agoq::train
