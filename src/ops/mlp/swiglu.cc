#include "ops/mlp/swiglu.h"

#include "ops/cpu.h"
#include "ops/mlp/swiglu_cpu.h"
#include "ops/mlp/swiglu_cuda.h"

namespace agoq::ops {
namespace {

void check_saved(const codec::Quantized& kept, int64_t rows, int64_t cols, const char* op, const char* what) {
  require(!kept.kept() || (kept.rows == rows && kept.row.cols == cols), "{}: {} is kept as [{}, {}], but is [{}, {}]",
          op, what, kept.rows, kept.row.cols, rows, cols);
}

}  // namespace

Tensor swiglu(const Context& ctx, const Tensor& gate_up, const codec::Quantized& keep_gate_up,
              const codec::Quantized& keep_h) {
  require(gate_up.shape.rank() == 2 && gate_up.cols() % 2 == 0 && gate_up.dtype == ctx.compute(),
          "swiglu: gate and up are {} {}, not {} [T, 2F]", name_of(gate_up.dtype), gate_up.shape.text(),
          name_of(ctx.compute()));
  const int64_t rows = gate_up.rows(), width = gate_up.cols() / 2;
  check_saved(keep_gate_up, rows, 2 * width, "swiglu", "gate_up");
  check_saved(keep_h, rows, width, "swiglu", "h");
  const Tensor h = ctx.empty({rows, width});
  Scope scope(ctx);
  const Tensor workspace = cpu::thread_scratch(ctx, ctx.compute() == DType::BF16 ? 3 * width : 0);
  if (ctx.meta()) return h;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild) {
    if (ctx.cuda()) {
      cuda::swiglu(ctx, gate_up, keep_gate_up, keep_h, h);
      return h;
    }
  }
  cpu::require_cpu(ctx, "swiglu");
  cpu::swiglu(gate_up, keep_gate_up, keep_h, h, workspace);
  return h;
}

SwigluGradients swiglu_backward(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                                const codec::Quantized& kept_h) {
  require(dh.shape.rank() == 2 && dh.dtype == ctx.compute(), "swiglu_backward: dh is {} {}, not {} [T, F]",
          name_of(dh.dtype), dh.shape.text(), name_of(ctx.compute()));
  require(kept_gate_up.kept(), "swiglu_backward: gate_up was not kept; recompute it first");
  const int64_t rows = dh.rows(), width = dh.cols();
  check_saved(kept_gate_up, rows, 2 * width, "swiglu_backward", "gate_up");
  check_saved(kept_h, rows, width, "swiglu_backward", "h");
  const Tensor d_gate_up = ctx.empty({rows, 2 * width});
  const SwigluGradients out{d_gate_up, ctx.empty({rows, width})};
  Scope scope(ctx);
  const Tensor workspace = cpu::thread_scratch(ctx, ctx.compute() == DType::BF16 ? 3 * width : 2 * width);
  if (ctx.meta()) return out;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild) {
    if (ctx.cuda()) {
      cuda::swiglu_backward(ctx, dh, kept_gate_up, kept_h, out);
      return out;
    }
  }
  cpu::require_cpu(ctx, "swiglu_backward");
  cpu::swiglu_backward(dh, kept_gate_up, kept_h, out, workspace);
  return out;
}

}  // namespace agoq::ops
