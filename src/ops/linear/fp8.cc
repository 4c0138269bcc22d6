#include "ops/linear/fp8.h"

#include "ops/cpu.h"
#include "ops/linear/fp8_cpu.h"
#include "ops/linear/fp8_cuda.h"

namespace agoq::ops {
namespace {

Operand encode(const Context& ctx, const Tensor& x, Major x_major, Fp8Format format, const char* op) {
  require(x.shape.rank() == 2 && (x.dtype == DType::F32 || x.dtype == DType::BF16),
          "{}: fp32 or bf16 of two dimensions become 8-bit floats, not {} {}", op, name_of(x.dtype), x.shape.text());
  const bool k_major = x_major == Major::K;
  const Operand out = fp8_operand(ctx, x.shape[k_major ? 0 : 1], x.shape[k_major ? 1 : 0], format);
  Scope scope(ctx);
  const Tensor row_amax = cpu::scratch(ctx, DType::F32, cpu::row_amax_shape(out));
  if (ctx.meta() || out.data.count() == 0) return out;
  Timed timed(ctx.profile, Work::Codec, op);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) {
      cuda::to_fp8(ctx, x, x_major, out);
      return out;
    }
  cpu::require_cpu(ctx, op);
  cpu::to_fp8(x, x_major, out, row_amax);
  return out;
}

}  // namespace

Operand fp8_operand(const Context& ctx, int64_t rows, int64_t k, Fp8Format format) {
  require(is_fp8(format.dtype) && format.granularity != Granularity::None,
          "an operand in {} with a scale per {} is none of 8-bit floats", name_of(format.dtype),
          name_of(format.granularity));
  const int64_t padded = padded_k(k, format.granularity);
  return {ctx.empty(format.dtype, {rows, padded}), ctx.empty(DType::F32, scale_shape(rows, padded, format.granularity)),
          format.granularity};
}

Operand to_fp8(const Context& ctx, const Tensor& x, Fp8Format format) {
  return encode(ctx, x, Major::K, format, "to_fp8");
}

Operand to_fp8_transposed(const Context& ctx, const Tensor& x, Fp8Format format) {
  return encode(ctx, x, Major::MN, format, "to_fp8_transposed");
}

}  // namespace agoq::ops
