#include "ops/norm/layer_norm.h"

#include "ops/norm/layer_norm_cpu.h"
#include "ops/norm/layer_norm_cuda.h"
#include "ops/norm/norm_checks.h"

namespace agoq::ops {

Tensor layer_norm(const Context& ctx, const Tensor& x, float eps, const codec::Quantized& keep_x, const Tensor& rstd) {
  const Tensor n = ctx.empty(x.shape);
  layer_norm_into(ctx, x, eps, keep_x, rstd, n);
  return n;
}

void layer_norm_into(const Context& ctx, const Tensor& x, float eps, const codec::Quantized& keep_x, const Tensor& rstd,
                     const Operand& n) {
  check_rows(ctx, x, x.cols(), "layer_norm", "x");
  if (keep_x.kept()) check_saved(keep_x, x.rows(), x.cols(), "layer_norm");
  if (rstd) check_rstd(rstd, {x.rows()}, "layer_norm");
  check_output(ctx, n, x.shape, "layer_norm", "n");
  Scope scope(ctx);
  if (!written_as_made(ctx, n, x.cols())) return to_fp8_into(ctx, layer_norm(ctx, x, eps, keep_x, rstd), n);
  const Tensor workspace = row_workspace(ctx, x.cols(), false);
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::layer_norm(ctx, x, eps, keep_x, rstd, n);
  cpu::require_cpu(ctx, "layer_norm");
  cpu::layer_norm(x, eps, keep_x, rstd, n.data, workspace);
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

Operand recompute_layer_norm_transposed(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd,
                                        OperandFormat format) {
  check_saved(kept_x, kept_x.rows, kept_x.row.cols, "recompute_layer_norm");
  check_rstd(rstd, {kept_x.rows}, "recompute_layer_norm");
  const Operand nt = counted(ctx, fp8_operand(ctx, kept_x.row.cols, kept_x.rows, format), Fp8Role::DwX);
  Scope scope(ctx);
  if (!turned_as_made(ctx, nt) || !kept_x.row.even()) {
    to_fp8_transposed_into(ctx, recompute_layer_norm(ctx, kept_x, rstd), nt);
    return nt;
  }
  const Tensor mean = ctx.empty(DType::F32, {kept_x.rows});
  if constexpr (kCudaBuild)
    if (ctx.cuda()) {
      Timed timed(ctx.profile, Work::Elementwise);
      cuda::recompute_layer_norm_transposed(ctx, kept_x, rstd, mean, nt);
    }
  return nt;
}

void layer_norm_backward_into(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                              const Tensor& residual, const Tensor& dx, const Operand& dx_rows) {
  const int64_t rows = dn.shape[0], cols = dn.cols();
  check_rows(ctx, dn, cols, "layer_norm_backward", "dn");
  check_saved(kept_x, rows, cols, "layer_norm_backward");
  check_rstd(rstd, {rows}, "layer_norm_backward");
  check_gradients(ctx, dn, residual, dx, "layer_norm_backward");
  if (dx_rows.data) {
    check_output(ctx, dx_rows, dx.shape, "layer_norm_backward", "dx_rows");
    if (!written_as_made(ctx, dx_rows, cols)) {
      layer_norm_backward_into(ctx, dn, kept_x, rstd, residual, dx);
      return to_fp8_into(ctx, dx, dx_rows);
    }
  }
  Scope scope(ctx);
  const Tensor workspace = row_workspace(ctx, cols, true);
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::layer_norm_backward(ctx, dn, kept_x, rstd, residual, dx, dx_rows);
  cpu::require_cpu(ctx, "layer_norm_backward");
  cpu::layer_norm_backward(dn, kept_x, rstd, residual, dx, workspace);
}

}  // namespace agoq::ops
