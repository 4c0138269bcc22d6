#include "ops/linear/delayed_scale.h"

#include <algorithm>

#include "ops/cpu.h"
#include "ops/linear/delayed_scale_cpu.h"
#include "ops/linear/delayed_scale_cuda.h"
#include "ops/linear/operand.h"

namespace agoq::ops {

void make_scales(const Context& ctx, const Tensor& amaxes, bool remember, const DelayedScaling& how,
                 const std::array<DType, kScaleRoles>& formats, const ScaleHistory& history) {
  const int64_t sites = history.amaxes.shape[0];
  require(amaxes.dtype == DType::F32 && history.amaxes.dtype == DType::F32 && history.scales.dtype == DType::F32 &&
              amaxes.shape.rank() == 2 && amaxes.cols() == sites && history.amaxes.shape == Shape{sites, how.history} &&
              history.scales.shape == scales_shape(sites) && sites % kScaleRoles == 0,
          "make_scales: amaxes {} and a history {} make no scales {}", amaxes.shape.text(), history.amaxes.shape.text(),
          history.scales.shape.text());
  require(how.history > 0 && how.margin >= 0 && how.margin <= kMostScaleMargin && std::ranges::all_of(formats, is_fp8),
          "make_scales: a history of {} steps and a margin of 2^{}", how.history, how.margin);
  if (ctx.meta() || sites == 0) return;
  Timed timed(ctx.profile, Work::Codec);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::make_scales(ctx, amaxes, remember, how, formats, history);
  cpu::require_cpu(ctx, "make_scales");
  cpu::make_scales(amaxes, remember, how, formats, history);
}

}  // namespace agoq::ops
