#include "ops/norm/rms_norm.h"

#include "ops/norm/norm_checks.h"
#include "ops/norm/rms_norm_cpu.h"
#include "ops/norm/rms_norm_cuda.h"

namespace agoq::ops {
namespace {

// One weight, or two in rows, as fp32 numbers on the CPU.
Tensor fp32_weights(const Context& ctx, std::initializer_list<Tensor> weights) {
  const int64_t count = static_cast<int64_t>(weights.size()), cols = weights.begin()->count();
  const Tensor all = cpu::scratch(ctx, DType::F32, {count, cols});
  if (ctx.device() != Device::Cpu) return all;
  int64_t row = 0;
  for (const Tensor& w : weights) {
    cpu::widen(w, all.row_range(row, row + 1));
    ++row;
  }
  return all;
}

void check_heads(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& wq, const Tensor& wk,
                 const char* op) {
  check_rows(ctx, qkv, heads.cols(), op, "qkv");
  require(wq.count() == heads.dim && wk.count() == heads.dim, "{}: the weights of q and k are {} and {}, not [{}]", op,
          wq.shape.text(), wk.shape.text(), heads.dim);
}

}  // namespace

Tensor rms_norm(const Context& ctx, const Tensor& x, const Tensor& w, float eps, const codec::Quantized& keep_x,
                const Tensor& rstd) {
  const Tensor n = ctx.empty(x.shape);
  rms_norm_into(ctx, x, w, eps, keep_x, rstd, n);
  return n;
}

void rms_norm_into(const Context& ctx, const Tensor& x, const Tensor& w, float eps, const codec::Quantized& keep_x,
                   const Tensor& rstd, const Operand& n) {
  check_rows(ctx, x, w.count(), "rms_norm", "x");
  if (keep_x.kept()) check_saved(keep_x, x.rows(), x.cols(), "rms_norm");
  if (rstd) check_rstd(rstd, {x.rows()}, "rms_norm");
  check_output(ctx, n, x.shape, "rms_norm", "n");
  Scope scope(ctx);
  if (!written_as_made(ctx, n, x.cols())) return to_fp8_into(ctx, rms_norm(ctx, x, w, eps, keep_x, rstd), n);
  const Tensor workspace = row_workspace(ctx, x.cols(), false), weights = fp32_weights(ctx, {w});
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::rms_norm(ctx, x, w, eps, keep_x, rstd, n);
  cpu::require_cpu(ctx, "rms_norm");
  cpu::rms_norm(x, weights, eps, keep_x, rstd, n.data, workspace);
}

Tensor recompute_rms_norm(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w) {
  check_saved(kept_x, kept_x.rows, w.count(), "recompute_rms_norm");
  check_rstd(rstd, {kept_x.rows}, "recompute_rms_norm");
  const Tensor n = ctx.empty({kept_x.rows, kept_x.row.cols});
  Scope scope(ctx);
  const Tensor workspace = row_workspace(ctx, n.cols(), true), weights = fp32_weights(ctx, {w});
  if (ctx.meta()) return n;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild) {
    if (ctx.cuda()) {
      cuda::recompute_rms_norm(ctx, kept_x, rstd, w, n);
      return n;
    }
  }
  cpu::require_cpu(ctx, "recompute_rms_norm");
  cpu::recompute_rms_norm(kept_x, rstd, weights, n, workspace);
  return n;
}

Operand recompute_rms_norm_transposed(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd,
                                      const Tensor& w, OperandFormat format) {
  check_saved(kept_x, kept_x.rows, w.count(), "recompute_rms_norm");
  check_rstd(rstd, {kept_x.rows}, "recompute_rms_norm");
  const Operand nt = counted(ctx, fp8_operand(ctx, w.count(), kept_x.rows, format), Fp8Role::DwX);
  Scope scope(ctx);
  if (!turned_as_made(ctx, nt) || !kept_x.row.even()) {
    to_fp8_transposed_into(ctx, recompute_rms_norm(ctx, kept_x, rstd, w), nt);
    return nt;
  }
  if constexpr (kCudaBuild)
    if (ctx.cuda()) {
      Timed timed(ctx.profile, Work::Elementwise);
      cuda::recompute_rms_norm_transposed(ctx, kept_x, rstd, w, nt);
    }
  return nt;
}

Tensor rms_norm_backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                         const Tensor& w, const Tensor& residual, const MainGrad& dw) {
  const Tensor dx = ctx.empty(dn.shape);
  rms_norm_backward_into(ctx, dn, kept_x, rstd, w, residual, dx, dw);
  return dx;
}

void rms_norm_backward_into(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                            const Tensor& w, const Tensor& residual, const Tensor& dx, const MainGrad& dw,
                            const Operand& dx_rows) {
  const int64_t rows = dn.shape[0], cols = w.count();
  check_rows(ctx, dn, cols, "rms_norm_backward", "dn");
  check_saved(kept_x, rows, cols, "rms_norm_backward");
  check_rstd(rstd, {rows}, "rms_norm_backward");
  check_gradients(ctx, dn, residual, dx, "rms_norm_backward");
  if (dx_rows.data) {
    check_output(ctx, dx_rows, dx.shape, "rms_norm_backward", "dx_rows");
    if (!written_as_made(ctx, dx_rows, cols)) {
      rms_norm_backward_into(ctx, dn, kept_x, rstd, w, residual, dx, dw);
      return to_fp8_into(ctx, dx, dx_rows);
    }
  }
  Scope scope(ctx);
  if (ctx.target() == Device::Cuda) {
    const ProfilerRange range("rms_norm_backward");
    const Tensor partial = ctx.empty(DType::F32, {cuda::norm_slices(rows, cols), cols});
    if constexpr (kCudaBuild)
      if (ctx.cuda()) cuda::rms_norm_backward(ctx, dn, kept_x, rstd, w, residual, dx, dx_rows, partial);
    return accumulate_slices(ctx, dw, partial);
  }
  const Tensor dw_sum = ctx.empty(DType::F32, {1, cols});
  {
    Scope kernel(ctx);
    const Tensor partial = cpu::scratch(ctx, DType::F32, {cpu::slices(rows), cols});
    const Tensor workspace = row_workspace(ctx, cols, true), weights = fp32_weights(ctx, {w});
    if (!ctx.meta()) {
      Timed timed(ctx.profile, Work::Elementwise);
      cpu::rms_norm_backward(dn, kept_x, rstd, weights, residual, dx, dw_sum, partial, workspace);
    }
  }
  accumulate(ctx, dw, dw_sum);
}

void qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& wq, const Tensor& wk, float eps,
             const Tensor& rstd) {
  check_heads(ctx, qkv, heads, wq, wk, "qk_norm");
  if (rstd) check_rstd(rstd, {qkv.rows(), heads.query + heads.kv}, "qk_norm");
  Scope scope(ctx);
  const Tensor weights = fp32_weights(ctx, {wq, wk});
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::qk_norm(ctx, qkv, heads, {wq, wk}, eps, rstd);
  cpu::require_cpu(ctx, "qk_norm");
  cpu::qk_norm(qkv, heads, weights, eps, rstd);
}

void recompute_qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& wq, const Tensor& wk,
                       const Tensor& rstd) {
  check_heads(ctx, qkv, heads, wq, wk, "recompute_qk_norm");
  check_rstd(rstd, {qkv.rows(), heads.query + heads.kv}, "recompute_qk_norm");
  Scope scope(ctx);
  const Tensor weights = fp32_weights(ctx, {wq, wk});
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::recompute_qk_norm(ctx, qkv, heads, {wq, wk}, rstd);
  cpu::require_cpu(ctx, "recompute_qk_norm");
  cpu::recompute_qk_norm(qkv, heads, weights, rstd);
}

void qk_norm_backward(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const Heads& heads,
                      const Tensor& wq, const Tensor& wk, const Tensor& rstd, const MainGrad& dwq,
                      const MainGrad& dwk) {
  check_heads(ctx, dqkv, heads, wq, wk, "qk_norm_backward");
  require(qkv_before.shape == dqkv.shape && qkv_before.dtype == dqkv.dtype,
          "qk_norm_backward: qkv before the norm is {} {}, its gradient {} {}", name_of(qkv_before.dtype),
          qkv_before.shape.text(), name_of(dqkv.dtype), dqkv.shape.text());
  check_rstd(rstd, {dqkv.rows(), heads.query + heads.kv}, "qk_norm_backward");
  Scope scope(ctx);
  if (ctx.target() == Device::Cuda) {
    const ProfilerRange range("qk_norm_backward");
    const int64_t slices = cuda::norm_slices(dqkv.rows(), 2 * heads.dim);
    const Tensor partial = ctx.empty(DType::F32, {2, slices, heads.dim}), rows = partial.view({2 * slices, heads.dim});
    if constexpr (kCudaBuild)
      if (ctx.cuda()) cuda::qk_norm_backward(ctx, dqkv, qkv_before, heads, {wq, wk}, rstd, partial);
    accumulate_slices(ctx, dwq, rows.row_range(0, slices));
    return accumulate_slices(ctx, dwk, rows.row_range(slices, 2 * slices));
  }
  const Tensor dw_sum = ctx.empty(DType::F32, {2, heads.dim});
  {
    Scope kernel(ctx);
    const Tensor partial = cpu::scratch(ctx, DType::F32, {cpu::slices(dqkv.rows()), 2 * heads.dim});
    const Tensor weights = fp32_weights(ctx, {wq, wk});
    if (!ctx.meta()) {
      Timed timed(ctx.profile, Work::Elementwise);
      cpu::qk_norm_backward(dqkv, qkv_before, heads, weights, rstd, dw_sum, partial);
    }
  }
  accumulate(ctx, dwq, dw_sum.row_range(0, 1));
  accumulate(ctx, dwk, dw_sum.row_range(1, 2));
}

}  // namespace agoq::ops
