#include "device/exposed.h"

namespace agoq {

std::string_view name_of(Exposed kind) {
  constexpr std::string_view kNames[] = {"tensor", "pipeline", "gradients", "weights"};
  return kNames[static_cast<size_t>(kind)];
}

void ExposedTimes::begin(Exposed kind) {
  kinds_.push_back(kind);
  watch_.mark();
}

ExposedSeconds ExposedTimes::take() {
  ExposedSeconds seconds{};
  const std::vector<double> between = watch_.take();  // waits, and what lies between them, in turn
  for (size_t i = 0; i < kinds_.size(); ++i) seconds[static_cast<size_t>(kinds_[i])] += between[2 * i];
  kinds_.clear();
  return seconds;
}

}  // namespace agoq
