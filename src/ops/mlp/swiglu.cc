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

void backward_into(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                   const codec::Quantized& kept_h, const SwigluGradients& out) {
  Scope scope(ctx);
  const int64_t width = dh.cols();
  const Tensor workspace = cpu::thread_scratch(ctx, ctx.compute() == DType::BF16 ? 3 * width : 2 * width);
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise, "swiglu_backward");
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::swiglu_backward(ctx, dh, kept_gate_up, kept_h, out);
  cpu::require_cpu(ctx, "swiglu_backward");
  cpu::swiglu_backward(dh, kept_gate_up, kept_h, out, workspace);
}

void check_backward(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                    const codec::Quantized& kept_h) {
  require(dh.shape.rank() == 2 && dh.dtype == ctx.compute(), "swiglu_backward: dh is {} {}, not {} [T, F]",
          name_of(dh.dtype), dh.shape.text(), name_of(ctx.compute()));
  require(kept_gate_up.kept(), "swiglu_backward: gate_up was not kept; recompute it first");
  check_saved(kept_gate_up, dh.rows(), 2 * dh.cols(), "swiglu_backward", "gate_up");
  check_saved(kept_h, dh.rows(), dh.cols(), "swiglu_backward", "h");
}

// Whether a GPU writes operands from gate and up at once, in forward or in backward, whose kernels hold a row of so
// many numbers in bf16.
bool writes_operands(const codec::Quantized& gate_up, int64_t width, int64_t held) {
  const int64_t segment = gate_up.kept() ? gate_up.row.segment : width;
  return codec::RowBlocks(2 * width, segment).even() && held <= cuda::kMostHeldNumbers;
}

}  // namespace

Tensor swiglu(const Context& ctx, const Tensor& gate_up, const codec::Quantized& keep_gate_up,
              const codec::Quantized& keep_h) {
  require(gate_up.shape.rank() == 2, "swiglu: gate and up are {}, not [T, 2F]", gate_up.shape.text());
  const Tensor h = ctx.empty({gate_up.rows(), gate_up.cols() / 2});
  swiglu_into(ctx, gate_up, keep_gate_up, keep_h, h);
  return h;
}

void swiglu_into(const Context& ctx, const Tensor& gate_up, const codec::Quantized& keep_gate_up,
                 const codec::Quantized& keep_h, const Operand& h) {
  require(gate_up.shape.rank() == 2 && gate_up.cols() % 2 == 0 && gate_up.dtype == ctx.compute(),
          "swiglu: gate and up are {} {}, not {} [T, 2F]", name_of(gate_up.dtype), gate_up.shape.text(),
          name_of(ctx.compute()));
  const int64_t rows = gate_up.rows(), width = gate_up.cols() / 2;
  check_saved(keep_gate_up, rows, 2 * width, "swiglu", "gate_up");
  check_saved(keep_h, rows, width, "swiglu", "h");
  check_output(ctx, h, {rows, width}, "swiglu", "h");
  Scope scope(ctx);
  const bool made = written_as_made(ctx, h, width) &&
                    (!is_fp8(h.dtype()) || (writes_operands(keep_gate_up, width, width) && !keep_h.kept()));
  if (!made) return to_fp8_into(ctx, swiglu(ctx, gate_up, keep_gate_up, keep_h), h);
  const Tensor workspace = cpu::thread_scratch(ctx, ctx.compute() == DType::BF16 ? 3 * width : 0);
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise, "swiglu");
  if constexpr (kCudaBuild) {
    if (ctx.cuda() && is_fp8(h.dtype())) return cuda::swiglu_rows(ctx, gate_up, keep_gate_up, h);
    if (ctx.cuda()) return cuda::swiglu(ctx, gate_up, keep_gate_up, keep_h, h.data);
  }
  cpu::require_cpu(ctx, "swiglu");
  cpu::swiglu(gate_up, keep_gate_up, keep_h, h.data, workspace);
}

SwigluGradients swiglu_backward(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                                const codec::Quantized& kept_h) {
  check_backward(ctx, dh, kept_gate_up, kept_h);
  const SwigluGradients out{ctx.empty({dh.rows(), 2 * dh.cols()}), ctx.empty(dh.shape)};
  backward_into(ctx, dh, kept_gate_up, kept_h, out);
  return out;
}

SwigluOperands swiglu_backward_operands(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                                        const codec::Quantized& kept_h) {
  check_backward(ctx, dh, kept_gate_up, kept_h);
  const int64_t rows = dh.rows(), width = dh.cols();
  const Operand d_gate_up = gradient_input(ctx, rows, 2 * width);
  const bool by_rows = is_fp8(d_gate_up.dtype()), padded = padded_k(width, Granularity::Row) != width;
  if (!by_rows || padded || !ctx.fp8->dw_in_fp8() || kept_h.kept()) {
    const Tensor h = ctx.empty({rows, width});
    Scope scope(ctx);
    const Tensor numbers = by_rows ? ctx.empty({rows, 2 * width}) : d_gate_up.data;
    backward_into(ctx, dh, kept_gate_up, kept_h, {numbers, h});
    if (by_rows) to_fp8_into(ctx, numbers, d_gate_up);
    return {d_gate_up, transposed(h)};
  }
  const Operand ht = operand_for(ctx, width, rows, Fp8Role::DwX);
  Scope scope(ctx);
  Operand h = fp8_rows(ctx, rows, width, ctx.fp8->dw_x.dtype);
  h.counts = ht.counts;  // what its rows lose, turning them does not bring back
  if (written_as_made(ctx, d_gate_up, 2 * width) && written_as_made(ctx, h, width) &&
      writes_operands(kept_gate_up, width, cuda::kHeldInBackward * width)) {
    if constexpr (kCudaBuild) {
      Timed timed(ctx.profile, Work::Elementwise, "swiglu_backward");
      if (ctx.cuda()) cuda::swiglu_backward_rows(ctx, dh, kept_gate_up, d_gate_up, h);
    }
  } else {
    const SwigluGradients numbers{ctx.empty({rows, 2 * width}), ctx.empty({rows, width})};
    backward_into(ctx, dh, kept_gate_up, kept_h, numbers);
    to_fp8_into(ctx, numbers.d_gate_up, d_gate_up);
    to_fp8_into(ctx, numbers.h, h);
  }
  to_fp8_transposed_into(ctx, h, ht);
  return {d_gate_up, ht};
}

}  // namespace agoq::ops
