#include "ops/gradient/accumulate.h"

#include <algorithm>

#include "base/integers.h"
#include "ops/cpu.h"
#include "ops/gradient/accumulate_cpu.h"
#include "ops/gradient/accumulate_cuda.h"
#include "ops/linear/fp8.h"
#include "ops/linear/linear.h"
#include "ops/linear/linear_cuda.h"

namespace agoq::ops {
namespace {

constexpr int64_t kSlabFloats = 1 << 20;           // of dW made at a time: stays in the last-level cache
constexpr int64_t kPanelFloats = 1 << 21;          // of bf16 operands widened at a time
constexpr int64_t kSlabBytes = int64_t{64} << 20;  // of dW made at a time on a GPU
constexpr int64_t kTileRows = 256;                 // of a product on a GPU

void check_grad(const MainGrad& grad, const char* op) {
  require(grad.data.kept(), "{}: the main gradient has codec none; choose fp32, bf16 or an 8-bit codec", op);
  require(grad.data.codec != codec::Codec::Dyn8Unsigned, "{}: codec {} cannot hold negative gradients", op,
          codec::name_of(grad.data.codec));
}

void check_numbers(const Tensor& t, const char* op, const char* name) {
  require(t.shape.rank() == 2 && (t.dtype == DType::F32 || t.dtype == DType::BF16),
          "{}: {} is {} {}, expected fp32 or bf16 of two dimensions", op, name, name_of(t.dtype), t.shape.text());
}

// Of a parameter with one dimension, which gets the column sums of `rows`.
void check_vector_grad(const MainGrad& grad, const Tensor& rows, const char* op) {
  check_grad(grad, op);
  require(grad.data.rows == 1 && grad.data.row.cols == rows.cols(),
          "{}: columns of {} are added up, but the gradient is [{}, {}]", op, rows.shape.text(), grad.data.rows,
          grad.data.row.cols);
}

Tensor row_workspace(const Context& ctx, const MainGrad& grad) {
  return cpu::thread_scratch(ctx, grad.data.row.cols);
}

// Rows of dW made at a time, and tokens widened at a time.
int64_t slab_rows(int64_t out, int64_t in) {
  return std::min(out, std::max<int64_t>(kSlabFloats / std::max<int64_t>(in, 1) / 8 * 8, 8));
}
int64_t panel_tokens(int64_t tokens, int64_t columns) {
  return std::min(tokens, std::max<int64_t>(kPanelFloats / columns, 64));
}

// The same on a GPU: slabs of nearly equal size, in whole tiles.
int64_t gpu_slab_rows(int64_t out, int64_t row_bytes) {
  const int64_t most = std::max<int64_t>(kSlabBytes / row_bytes / kTileRows * kTileRows, kTileRows);
  const int64_t even = ceil_div(out, ceil_div(out, most));
  return std::min(out, ceil_div(even, kTileRows) * kTileRows);
}

// dyᵀ·x on a GPU: slab by slab into a temporary in the type of x, or at once into a plain fp32 gradient.
void accumulate_dw_gpu(const Context& ctx, const MainGrad& grad, const Tensor& dy, const Tensor& x) {
  const int64_t out = grad.data.rows, in = grad.data.row.cols;
  const bool plain = grad.data.codec == codec::Codec::Fp32;
  const int64_t rows = plain ? out : gpu_slab_rows(out, in * static_cast<int64_t>(size_of(x.dtype)));
  Scope scope(ctx);
  const Tensor workspace = ctx.scratch(Device::Cuda, DType::U8, {cuda::kGemmWorkspace});
  const Tensor slab = plain ? Tensor{} : ctx.scratch(Device::Cuda, x.dtype, {rows, in});
  if (ctx.meta()) return;
  const ProfilerRange range("accumulate_dw");
  if constexpr (kCudaBuild) {
    if (plain) return cuda::dw_rows(ctx, dy, x, 0, !grad.fresh, grad.data.plain(), workspace);
    for (int64_t begin = 0; begin < out; begin += rows) {
      const Tensor dw = slab.row_range(0, std::min(rows, out - begin));
      cuda::dw_rows(ctx, dy, x, begin, false, dw, workspace);
      cuda::accumulate(ctx, grad, dw, begin);
    }
  }
}

// The transpose of x, numbers or 8-bit floats by rows, as dW reads it. `sites`: of the gradient.
Operand turned(const Context& ctx, const Operand& x, Fp8Role role, const ScaleSites* sites) {
  if (const ScaleSite* site = site_of(ctx, sites, role)) return to_fp8(ctx, transposed(x.data), role, *site);
  const Operand out = operand_for(ctx, x.k(), x.rows(), role);
  is_fp8(x.dtype()) ? to_fp8_transposed_into(ctx, x, out) : to_fp8_transposed_into(ctx, x.data, out);
  return out;
}

}  // namespace

codec::Rounding MainGrad::rounding(const RandomKey& step_key, RngStream stream) const {
  if (!stochastic) return codec::Rounding::nearest();
  RandomKey key = step_key;
  key.stream = stream;
  key.tensor = tensor;
  return codec::Rounding::random(key, global_offset);
}

void zero_if_fresh(const Context& ctx, const MainGrad& grad) {
  if (grad.fresh) codec::zero(ctx, grad.data);
}

void accumulate(const Context& ctx, const MainGrad& grad, const Tensor& delta, int64_t begin) {
  check_grad(grad, "accumulate");
  check_numbers(delta, "accumulate", "delta");
  require(delta.cols() == grad.data.row.cols && begin >= 0 && begin + delta.shape[0] <= grad.data.rows,
          "accumulate: delta {} for rows from {} on does not fit a gradient of shape [{}, {}]", delta.shape.text(),
          begin, grad.data.rows, grad.data.row.cols);
  Scope scope(ctx);
  const Tensor workspace = row_workspace(ctx, grad);
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Codec);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::accumulate(ctx, grad, delta, begin);
  cpu::require_cpu(ctx, "accumulate");
  cpu::accumulate(ctx, grad, delta, begin, false, workspace);
}

void accumulate_dw(const Context& ctx, const MainGrad& grad, const Tensor& dy, const Tensor& x) {
  check_grad(grad, "accumulate_dw");
  check_numbers(dy, "accumulate_dw", "dy");
  check_numbers(x, "accumulate_dw", "x");
  const int64_t tokens = x.shape[0], out = grad.data.rows, in = grad.data.row.cols;
  require(dy.shape == Shape{tokens, out} && x.shape == Shape{tokens, in} && dy.dtype == x.dtype,
          "accumulate_dw: dy is {} {} and x {} {}, but the gradient is [{}, {}]", name_of(dy.dtype), dy.shape.text(),
          name_of(x.dtype), x.shape.text(), out, in);
  if (tokens == 0) return zero_if_fresh(ctx, grad);
  if (ctx.fp8 && ctx.fp8->dw_in_fp8()) {
    Scope scope(ctx);
    return accumulate_dw(ctx, grad, turned(ctx, dy, Fp8Role::DwDy, grad.sites),
                         turned(ctx, x, Fp8Role::DwX, grad.sites), ctx.fp8->dw);
  }
  if (ctx.profile) ctx.profile->gemm_flops += 2.0 * static_cast<double>(tokens) * static_cast<double>(out * in);
  if (ctx.target() == Device::Cuda) return accumulate_dw_gpu(ctx, grad, dy, x);
  const bool plain = grad.data.codec == codec::Codec::Fp32, widen = x.dtype == DType::BF16;
  const int64_t rows = slab_rows(out, in), panel = panel_tokens(tokens, in + rows);

  Scope scope(ctx);
  cpu::PanelWorkspace panels;
  if (widen) panels = {cpu::scratch(ctx, DType::F32, {panel, rows}), cpu::scratch(ctx, DType::F32, {panel, in})};
  Tensor slab, workspace;
  if (!plain) {
    slab = cpu::scratch(ctx, DType::F32, {rows, in});
    workspace = row_workspace(ctx, grad);
  }
  if (ctx.meta()) return;
  cpu::require_cpu(ctx, "accumulate_dw");
  for (int64_t begin = 0; begin < out; begin += rows) {
    const int64_t end = std::min(begin + rows, out);
    {
      Timed timed(ctx.profile, Work::Gemm);
      float* c = plain ? grad.data.plain().as<float>() + begin * in : slab.as<float>();
      cpu::dw_slab(dy, x, begin, end, plain && !grad.fresh, c, panels);
    }
    if (plain) continue;
    Timed timed(ctx.profile, Work::Codec);
    cpu::accumulate(ctx, grad, slab.row_range(0, end - begin), begin, widen, workspace);
  }
}

void accumulate_dw(const Context& ctx, const MainGrad& grad, const Operand& dy, const Operand& xt) {
  if (dy.rows() == 0) return zero_if_fresh(ctx, grad);
  Scope scope(ctx);
  if (ctx.fp8 && ctx.fp8->dw_in_fp8()) {
    return accumulate_dw(ctx, grad, turned(ctx, dy, Fp8Role::DwDy, grad.sites),
                         is_fp8(xt.dtype()) ? xt : turned(ctx, xt.data, Fp8Role::DwX, grad.sites), ctx.fp8->dw);
  }
  require(!is_fp8(xt.dtype()), "accumulate_dw: x is in 8-bit floats, but dW is made in {}", name_of(ctx.compute()));
  accumulate_dw(ctx, grad, is_fp8(dy.dtype()) ? to_numbers(ctx, dy) : dy.data, xt.data);
}

void accumulate_dw(const Context& ctx, const MainGrad& grad, const Operand& a, const Operand& b,
                   Accumulation accumulation) {
  check_grad(grad, "accumulate_dw");
  const int64_t out = grad.data.rows, in = grad.data.row.cols;
  require(a.rows() == out && b.rows() == in, "accumulate_dw: operands {} and {} make no gradient of [{}, {}]",
          a.data.shape.text(), b.data.shape.text(), out, in);
  if (grad.data.codec == codec::Codec::Fp32)
    return gemm(ctx, a, b, grad.data.plain(), grad.fresh ? 0.0f : 1.0f, accumulation);
  const bool gpu = ctx.target() == Device::Cuda;
  int64_t rows = gpu ? gpu_slab_rows(out, in * static_cast<int64_t>(size_of(ctx.compute()))) : slab_rows(out, in);
  if (a.granularity == Granularity::Block1x128) rows = out;
  if (a.granularity == Granularity::Block128x128) rows = std::min(out, ceil_div(rows, kScaleBlock) * kScaleBlock);
  Scope scope(ctx);
  const Tensor slab = ctx.empty({rows, in});
  for (int64_t begin = 0; begin < out; begin += rows) {
    const int64_t end = std::min(begin + rows, out);
    const Tensor dw = slab.row_range(0, end - begin);
    gemm(ctx, rows_of(a, begin, end), b, dw, 0, accumulation);
    accumulate(ctx, grad, dw, begin);
  }
}

void accumulate_db(const Context& ctx, const MainGrad& grad, const Tensor& dy) {
  check_vector_grad(grad, dy, "accumulate_db");
  check_numbers(dy, "accumulate_db", "dy");
  Scope scope(ctx);
  if (ctx.target() == Device::Cuda) {
    const ProfilerRange range("accumulate_db");
    const Tensor slices = ctx.empty(DType::F32, {cuda::kSlices, dy.cols()});
    if constexpr (kCudaBuild)
      if (ctx.cuda()) cuda::column_sums(ctx, dy, slices);
    return accumulate_slices(ctx, grad, slices);
  }
  const Tensor sums = ctx.empty(DType::F32, {1, dy.cols()});
  const Tensor workspace = row_workspace(ctx, grad);
  if (ctx.meta()) return;
  cpu::require_cpu(ctx, "accumulate_db");
  Timed timed(ctx.profile, Work::Elementwise);
  cpu::column_sums(dy, sums);
  cpu::accumulate(ctx, grad, sums, 0, false, workspace);
}

void accumulate_slices(const Context& ctx, const MainGrad& grad, const Tensor& slices) {
  check_vector_grad(grad, slices, "accumulate_slices");
  const bool plain = grad.data.codec == codec::Codec::Fp32;
  Scope scope(ctx);
  const Tensor sum = plain ? Tensor{} : ctx.empty(DType::F32, {1, slices.cols()});
  if (ctx.meta()) return;
  require(ctx.cuda(), "accumulate_slices: is for GPUs");
  if constexpr (kCudaBuild) {
    if (plain) return cuda::add_slices(ctx, slices, !grad.fresh, grad.data.plain());
    cuda::add_slices(ctx, slices, false, sum);
    cuda::accumulate(ctx, grad, sum, 0);
  }
}

}  // namespace agoq::ops
