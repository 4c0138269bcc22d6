#include "ops/norm/layer_norm.h"

#include "ops/norm/layer_norm_cpu.h"
#include "ops/norm/layer_norm_cuda.h"
#include "ops/norm/norm_checks.h"

namespace agoq::ops {

Tensor layer_norm(const Context& ctx, const Tensor& x, float eps, const codec::Quantized& keep_x, const Tensor& rstd) {
  check_rows(ctx, x, x.cols(), "layer_norm", "x");
  if (keep_x.kept()) check_saved(keep_x, x.rows(), x.cols(), "layer_norm");
  if (rstd) check_rstd(rstd, {x.rows()}, "layer_norm");
  const Tensor n = ctx.empty(x.shape);
  Scope scope(ctx);
  const Tensor workspace = row_workspace(ctx, x.cols(), false);
  if (ctx.meta()) return n;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild) {
    if (ctx.cuda()) {
      cuda::layer_norm(ctx, x, eps, keep_x, rstd, n);
      return n;
    }
  }
  cpu::require_cpu(ctx, "layer_norm");
  cpu::layer_norm(x, eps, keep_x, rstd, n, workspace);
  return n;
}

Tensor recompute_layer_norm(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd) {
  check_saved(kept_x, kept_x.rows, kept_x.row.cols, "recompute_layer_norm");
  check_rstd(rstd, {kept_x.rows}, "recompute_layer_norm");
  const Tensor n = ctx.empty({kept_x.rows, kept_x.row.cols});
  Scope scope(ctx);
  const Tensor workspace = row_workspace(ctx, n.cols(), true);
  if (ctx.meta()) return n;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild) {
    if (ctx.cuda()) {
      cuda::recompute_layer_norm(ctx, kept_x, rstd, n);
      return n;
    }
  }
  cpu::require_cpu(ctx, "recompute_layer_norm");
  cpu::recompute_layer_norm(kept_x, rstd, n, workspace);
  return n;
}

void layer_norm_backward_into(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                              const Tensor& residual, const Tensor& dx) {
  const int64_t rows = dn.shape[0], cols = dn.cols();
  check_rows(ctx, dn, cols, "layer_norm_backward", "dn");
  check_saved(kept_x, rows, cols, "layer_norm_backward");
  check_rstd(rstd, {rows}, "layer_norm_backward");
  check_gradients(ctx, dn, residual, dx, "layer_norm_backward");
  Scope scope(ctx);
  const Tensor workspace = row_workspace(ctx, cols, true);
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::layer_norm_backward(ctx, dn, kept_x, rstd, residual, dx);
  cpu::require_cpu(ctx, "layer_norm_backward");
  cpu::layer_norm_backward(dn, kept_x, rstd, residual, dx, workspace);
}

}  // namespace agoq::ops
