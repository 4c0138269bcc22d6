#include "ops/gradient/gradient_norm.h"

#include "ops/cpu.h"
#include "ops/gradient/gradient_norm_cpu.h"
#include "ops/gradient/gradient_norm_cuda.h"

namespace agoq::ops {

void squared_norms(const Context& ctx, std::span<const GradientSum> grads, const Tensor& squares) {
  const auto n = static_cast<int64_t>(grads.size());
  require(squares.dtype == DType::F32 && squares.count() == n,
          "squared_norms: the result is {} {}, expected an fp32 number for each of {} gradients",
          name_of(squares.dtype), squares.shape.text(), n);
  int64_t most_rows = 0, tiles = 0;
  for (const GradientSum& g : grads) {
    check_sum(g, "squared_norms");
    most_rows = std::max(most_rows, g.first.rows);
    tiles += cuda::norm_tiles(g);
  }
  Scope scope(ctx);
  const Tensor rows = ctx.scratch(Device::Cpu, DType::F64, {most_rows});
  const Tensor partial = ctx.scratch(Device::Cuda, DType::F64, {tiles});
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Optimizer);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::squared_norms(ctx, grads, partial.as<double>(), squares.as<float>());
  cpu::require_cpu(ctx, "squared_norms");
  for (int64_t i = 0; i < n; ++i)
    squares.as<float>()[i] = cpu::squared_norm(grads[static_cast<size_t>(i)], rows.as<double>());
}

}  // namespace agoq::ops
