#include "ops/optimizer/adamw.h"

#include "ops/cpu.h"
#include "ops/optimizer/adamw_cpu.h"
#include "ops/optimizer/adamw_cuda.h"

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
  require(moment.codec == Codec::Fp32 || moment.codec == eight_bits, "adamw: moment {} has codec {}; choose fp32 or {}",
          name, codec::name_of(moment.codec), codec::name_of(eight_bits));
  require(moment.rows == grad.rows && moment.row == grad.row,
          "adamw: moment {} is [{}, {}] in segments of {}, its gradient [{}, {}] in segments of {}", name, moment.rows,
          moment.row.cols, moment.row.segment, grad.rows, grad.row.cols, grad.row.segment);
}

void check_state(const AdamWState& state) {
  check_sum(state.grad, "adamw");
  const codec::Quantized& grad = state.grad.first;
  check_weight(state.weight, grad.rows * grad.row.cols);
  check_moment(state.m, grad, Codec::Dyn8, "m");
  check_moment(state.v, grad, Codec::Dyn8Unsigned, "v");
}

void check_scalars(const Tensor& scalars, const char* op) {
  require(scalars.dtype == DType::U8 && scalars.shape == update_scalars_shape(),
          "{}: the update's scalars are {} {}, expected {} bytes", op, name_of(scalars.dtype), scalars.shape.text(),
          sizeof(UpdateScalars));
}

UpdateScalars& scalars_in(const Tensor& scalars) {
  return *static_cast<UpdateScalars*>(scalars.data);
}

}  // namespace

void decide_update(const Context& ctx, const Tensor& squares, double lr, const AdamWConfig& config,
                   const Tensor& scalars) {
  require(squares.dtype == DType::F32, "decide_update: squares are {}, expected fp32", name_of(squares.dtype));
  require(squares.count() < UINT32_MAX, "decide_update: {} squares are more than can be counted", squares.count());
  check_scalars(scalars, "decide_update");
  if (ctx.meta()) return;
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::decide_update(ctx, squares, lr, config, &scalars_in(scalars));
  cpu::require_cpu(ctx, "decide_update");
  cpu::decide_update(squares, lr, config, scalars_in(scalars));
}

void adamw(const Context& ctx, std::span<const AdamWState> states, double lr, const AdamWConfig& config,
           const Tensor& scalars) {
  for (const AdamWState& state : states) check_state(state);
  check_scalars(scalars, "adamw");
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Optimizer);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::adamw(ctx, states, lr, config, &scalars_in(scalars));
  cpu::require_cpu(ctx, "adamw");
  const UpdateScalars& decided = scalars_in(scalars);
  if (decided.non_finite != 0) return;
  const AdamWFactors factors(lr, config);
  for (const AdamWState& state : states) cpu::adamw(ctx.random, state, factors, decided);
}

}  // namespace agoq::ops
