#include "ops/adamw.h"

#include "ops/adamw_cpu.h"
#include "ops/cpu.h"

namespace agoq::ops {
namespace {

using codec::Codec;

void check_weight(const Weight& w, int64_t count) {
  const auto holds = [&](const Tensor& t, DType dtype) { return t.dtype == dtype && t.count() == count; };
  const bool fp32 = !w.correction && !w.master && holds(w.value, DType::F32);
  const bool split = !w.master && holds(w.value, DType::BF16) && holds(w.correction, DType::I16);
  const bool both = !w.correction && holds(w.value, DType::BF16) && holds(w.master, DType::F32);
  require(fp32 || split || both,
          "adamw: the weight (value {} {}, correction {}, master {}) is none of: fp32; bf16 + int16 correction; "
          "bf16 + fp32 master; of {} elements",
          name_of(w.value.dtype), w.value.shape.text(), w.correction.shape.text(), w.master.shape.text(), count);
}

void check_moment(const codec::Quantized& moment, const codec::Quantized& grad, Codec eight_bits, const char* name) {
  require(moment.codec == Codec::Fp32 || moment.codec == Codec::Bf16 || moment.codec == eight_bits,
          "adamw: moment {} has codec {}; choose fp32, bf16 or {}", name, codec::name_of(moment.codec),
          codec::name_of(eight_bits));
  require(moment.rows == grad.rows && moment.row == grad.row,
          "adamw: moment {} is [{}, {}] in segments of {}, its gradient [{}, {}] in segments of {}", name, moment.rows,
          moment.row.cols, moment.row.segment, grad.rows, grad.row.cols, grad.row.segment);
}

}  // namespace

void adamw(const Context& ctx, const AdamWState& state, const AdamWStep& step) {
  require(state.grad.kept(), "adamw: the gradient has codec none");
  check_weight(state.weight, state.grad.rows * state.grad.row.cols);
  check_moment(state.m, state.grad, Codec::Dyn8, "m");
  check_moment(state.v, state.grad, Codec::Dyn8Unsigned, "v");
  require(step.step >= 1, "adamw: steps count from 1, this is {}", step.step);
  if (ctx.meta()) return;
  cpu::require_cpu(ctx, "adamw");
  Timed timed(ctx.profile, Work::Optimizer);
  cpu::adamw(ctx.random, state, step);
}

void squared_norm(const Context& ctx, const codec::Quantized& grad, const Tensor& out) {
  require(grad.kept(), "squared_norm: the gradient has codec none");
  require(out.dtype == DType::F32 && out.count() == 1, "squared_norm: the result is {} {}, expected one fp32 number",
          name_of(out.dtype), out.shape.text());
  Scope scope(ctx);
  const Tensor rows = cpu::scratch(ctx, DType::I64, {grad.rows});  // the bytes of doubles
  if (ctx.meta()) return;
  cpu::require_cpu(ctx, "squared_norm");
  Timed timed(ctx.profile, Work::Optimizer);
  cpu::squared_norm(grad, static_cast<double*>(rows.data), out.as<float>());
}

}  // namespace agoq::ops
