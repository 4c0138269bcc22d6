#include "ops/linear/fp8.h"

#include "ops/cpu.h"
#include "ops/linear/fp8_cpu.h"
#include "ops/linear/fp8_cuda.h"

namespace agoq::ops {
namespace {

void encode(const Context& ctx, const Tensor& x, Major x_major, const Operand& out, const char* op) {
  const bool k_major = x_major == Major::K;
  check_operand(out, op);
  require(x.shape.rank() == 2 && (x.dtype == DType::F32 || x.dtype == DType::BF16),
          "{}: fp32 or bf16 of two dimensions become 8-bit floats, not {} {}", op, name_of(x.dtype), x.shape.text());
  require(is_fp8(out.dtype()) && out.major == Major::K && out.rows() == x.shape[k_major ? 0 : 1] &&
              out.k() == padded_k(x.shape[k_major ? 1 : 0], out.granularity),
          "{}: {} does not become an operand {} in {}", op, x.shape.text(), out.data.shape.text(),
          name_of(out.dtype()));
  Scope scope(ctx);
  const Tensor row_amax = cpu::scratch(ctx, DType::F32, cpu::row_amax_shape(out));
  if (ctx.meta() || out.data.count() == 0) return;
  Timed timed(ctx.profile, Work::Codec, op);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::to_fp8(ctx, x, x_major, out);
  cpu::require_cpu(ctx, op);
  cpu::to_fp8(x, x_major, out, row_amax);
}

}  // namespace

Operand fp8_operand(const Context& ctx, int64_t rows, int64_t k, OperandFormat format) {
  require(is_fp8(format.dtype) && format.granularity != Granularity::None,
          "an operand in {} with a scale per {} is none of 8-bit floats", name_of(format.dtype),
          name_of(format.granularity));
  const int64_t padded = padded_k(k, format.granularity);
  return {ctx.empty(format.dtype, {rows, padded}), ctx.empty(DType::F32, scale_shape(rows, padded, format.granularity)),
          format.granularity};
}

void to_fp8_into(const Context& ctx, const Tensor& x, const Operand& out) {
  encode(ctx, x, Major::K, out, "to_fp8");
}

void to_fp8_transposed_into(const Context& ctx, const Tensor& x, const Operand& out) {
  encode(ctx, x, Major::MN, out, "to_fp8_transposed");
}

Operand to_fp8(const Context& ctx, const Tensor& x, OperandFormat format) {
  require(x.shape.rank() == 2, "to_fp8: a matrix has two dimensions, not {}", x.shape.text());
  const Operand out = fp8_operand(ctx, x.shape[0], x.shape[1], format);
  to_fp8_into(ctx, x, out);
  return out;
}

Operand to_fp8_transposed(const Context& ctx, const Tensor& x, OperandFormat format) {
  require(x.shape.rank() == 2, "to_fp8_transposed: a matrix has two dimensions, not {}", x.shape.text());
  const Operand out = fp8_operand(ctx, x.shape[1], x.shape[0], format);
  to_fp8_transposed_into(ctx, x, out);
  return out;
}

}  // namespace agoq::ops
