#include "ops/norm/wide_qk_norm.h"

#include "comm/process_group.h"
#include "ops/norm/norm_checks.h"
#include "ops/norm/rms_norm_cpu.h"
#include "ops/norm/rms_norm_cuda.h"
#include "ops/norm/wide_qk_norm_cpu.h"
#include "ops/norm/wide_qk_norm_cuda.h"
#include "ops/sequence_parallel.h"

namespace agoq::ops {
namespace {

void check(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& wq, const Tensor& wk,
           const char* op) {
  check_rows(ctx, qkv, heads.cols(), op, "qkv");
  require(wq.count() == heads.q_cols() && wk.count() == heads.kv_cols(),
          "{}: the weights of q and k are {} and {}, not [{}] and [{}]", op, wq.shape.text(), wk.shape.text(),
          heads.q_cols(), heads.kv_cols());
}

// wq, then wk, as fp32 numbers on the CPU: one for each column that is normalised.
Tensor fp32_weights(const Context& ctx, const Tensor& wq, const Tensor& wk) {
  const Tensor all = cpu::scratch(ctx, DType::F32, {wq.count() + wk.count(), 1});
  if (ctx.device() != Device::Cpu) return all;
  cpu::widen(wq, all.row_range(0, wq.count()));
  cpu::widen(wk, all.row_range(wq.count(), all.rows()));
  return all;
}

WideNorm wide_norm(const Context& ctx, const Heads& heads, const Tensor& wq, const Tensor& wk, float eps = 0) {
  const auto width = [&](int64_t cols) { return static_cast<float>(tensor_ranks(ctx) * cols); };
  return {heads, wq, wk, fp32_weights(ctx, wq, wk), width(heads.q_cols()), width(heads.kv_cols()), eps};
}

// Σ over the tensor group, of which each rank has sums over its heads.
void sum_over_ranks(const Context& ctx, const Tensor& sums) {
  if (!alone(ctx)) ctx.tensor->all_reduce_sum(ctx, sums);
}

void sum_squares(const Context& ctx, const Tensor& qkv, const WideNorm& norm, const Tensor& sums) {
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::sum_squares(ctx, qkv, norm, sums);
  cpu::require_cpu(ctx, "wide_qk_norm");
  cpu::sum_squares(qkv, norm, sums);
}

void normalise(const Context& ctx, const Tensor& qkv, const WideNorm& norm, const Tensor& sums, const Tensor& rstd) {
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::normalise_qk(ctx, qkv, norm, sums, rstd);
  cpu::normalise_qk(qkv, norm, sums, rstd);
}

void sum_products(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const WideNorm& norm,
                  const Tensor& sums) {
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::sum_products(ctx, dqkv, qkv_before, norm, sums);
  cpu::require_cpu(ctx, "wide_qk_norm_backward");
  cpu::sum_products(dqkv, qkv_before, norm, sums);
}

}  // namespace

void wide_qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& wq, const Tensor& wk,
                  float eps, const Tensor& rstd) {
  check(ctx, qkv, heads, wq, wk, "wide_qk_norm");
  if (rstd) check_rstd(rstd, {qkv.rows(), 2}, "wide_qk_norm");
  Scope scope(ctx);
  const WideNorm norm = wide_norm(ctx, heads, wq, wk, eps);
  const Tensor sums = ctx.empty(DType::F32, {qkv.rows(), 2});
  sum_squares(ctx, qkv, norm, sums);
  sum_over_ranks(ctx, sums);
  normalise(ctx, qkv, norm, sums, rstd);
}

void recompute_wide_qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& wq,
                            const Tensor& wk, const Tensor& rstd) {
  check(ctx, qkv, heads, wq, wk, "recompute_wide_qk_norm");
  check_rstd(rstd, {qkv.rows(), 2}, "recompute_wide_qk_norm");
  Scope scope(ctx);
  const WideNorm norm = wide_norm(ctx, heads, wq, wk);
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::scale_qk(ctx, qkv, norm, rstd);
  cpu::require_cpu(ctx, "recompute_wide_qk_norm");
  cpu::scale_qk(qkv, norm, rstd);
}

void wide_qk_norm_backward(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const Heads& heads,
                           const Tensor& wq, const Tensor& wk, const Tensor& rstd, const MainGrad& dwq,
                           const MainGrad& dwk) {
  check(ctx, dqkv, heads, wq, wk, "wide_qk_norm_backward");
  require(qkv_before.shape == dqkv.shape && qkv_before.dtype == dqkv.dtype,
          "wide_qk_norm_backward: qkv before the norm is {} {}, its gradient {} {}", name_of(qkv_before.dtype),
          qkv_before.shape.text(), name_of(dqkv.dtype), dqkv.shape.text());
  check_rstd(rstd, {dqkv.rows(), 2}, "wide_qk_norm_backward");
  const int64_t rows = dqkv.rows(), q = heads.q_cols(), k = heads.kv_cols();
  Scope scope(ctx);
  const WideNorm norm = wide_norm(ctx, heads, wq, wk);
  const Tensor sums = ctx.empty(DType::F32, {rows, 2});
  sum_products(ctx, dqkv, qkv_before, norm, sums);
  sum_over_ranks(ctx, sums);
  if (ctx.target() == Device::Cuda) {
    const int64_t slices = cuda::norm_slices(rows, q + k);
    const Tensor q_slices = ctx.empty(DType::F32, {slices, q}), k_slices = ctx.empty(DType::F32, {slices, k});
    Timed timed(ctx.profile, Work::Elementwise);
    if constexpr (kCudaBuild)
      if (ctx.cuda()) cuda::wide_qk_norm_backward(ctx, dqkv, qkv_before, norm, rstd, sums, q_slices, k_slices);
    accumulate_slices(ctx, dwq, q_slices);
    return accumulate_slices(ctx, dwk, k_slices);
  }
  const Tensor dw = ctx.empty(DType::F32, {q + k, 1});
  {
    Scope kernel(ctx);
    const Tensor partial = cpu::scratch(ctx, DType::F32, {cpu::slices(rows), q + k});
    if (!ctx.meta()) {
      Timed timed(ctx.profile, Work::Elementwise);
      cpu::wide_qk_norm_backward(dqkv, qkv_before, norm, rstd, sums, dw, partial);
    }
  }
  accumulate(ctx, dwq, dw.row_range(0, q).view({1, q}));
  accumulate(ctx, dwk, dw.row_range(q, q + k).view({1, k}));
}

}  // namespace agoq::ops
