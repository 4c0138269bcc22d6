#include "train/rehearsal.h"

#include <optional>

#include "ops/gemm_algorithms.h"

namespace agoq::train {

void rehearse(parallel::TrainingState& state) {
  if constexpr (kCudaBuild) {
    if (!state.context().cuda()) return;
    std::optional<ops::GemmTuning> tuning;
    if (!state.job().deterministic) tuning.emplace(state.context().gpu());
    state.rehearse();
  }
}

}  // namespace agoq::train
