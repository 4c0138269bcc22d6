#include "train/rehearsal.h"

#include <optional>

#include "ops/attention_check.h"
#include "ops/gemm_algorithms.h"

namespace agoq::train {

void rehearse(parallel::TrainingState& state, const Crew& crew) {
  if constexpr (kCudaBuild) {
    if (!state.context().cuda()) return;
    Gpu& gpu = state.context().gpu();
    std::optional<ops::GemmTuning> tuning;
    if (!state.job().deterministic) tuning.emplace(gpu);
    state.rehearse();
    if (!crew.alone()) ops::agree_on_gemm_algorithms(gpu, crew.gather(ops::gemm_algorithms(gpu)));
  }
}

void check_attention(parallel::TrainingState& state, bool packed) {
  if constexpr (kCudaBuild) {
    const Context& ctx = state.context();
    if (!ctx.cuda() || ctx.compute() != DType::BF16) return;  // fp32 takes our own kernels
    const parallel::Job& job = state.job();
    ops::require_right_attention(ctx.gpu(), {state.spec().heads, job.model.window},
                                 {packed, job.training, ctx.deterministic});
  }
}

}  // namespace agoq::train
