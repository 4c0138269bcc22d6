#include "train/warm_up.h"

#include <optional>

#include "ops/attention/attention_check.h"
#include "ops/linear/gemm_algorithms.h"

namespace agoq::train {

void warm_up(parallel::TrainingState& state, const Coordinator& coordinator) {
  if constexpr (kCudaBuild) {
    if (!state.context().cuda()) return;
    Gpu& gpu = state.context().gpu();
    std::optional<ops::GemmTuning> tuning;
    if (!state.run_spec().deterministic) tuning.emplace(gpu);
    state.dry_run();
    if (!coordinator.alone()) ops::agree_on_gemm_algorithms(gpu, coordinator.gather(ops::gemm_algorithms(gpu)));
  }
}

void check_attention(parallel::TrainingState& state, bool packed) {
  if constexpr (kCudaBuild) {
    const Context& ctx = state.context();
    if (!ctx.cuda() || ctx.compute() != DType::BF16) return;  // fp32 takes our own kernels
    const parallel::RunSpec& run_spec = state.run_spec();
    ops::require_right_attention(ctx.gpu(), {state.spec().heads, run_spec.model.window},
                                 {packed, run_spec.training, ctx.deterministic});
  }
}

}  // namespace agoq::train
