#include "ops/linear/fp8.h"

#include "ops/cpu.h"
#include "ops/linear/fp8_cpu.h"
#include "ops/linear/fp8_cuda.h"

namespace agoq::ops {
namespace {

void check_encoding(const Tensor& x, Major x_major, const Operand& out, const char* op) {
  const bool k_major = x_major == Major::K;
  check_operand(out, op);
  require(x.shape.rank() == 2 && (x.dtype == DType::F32 || x.dtype == DType::BF16),
          "{}: fp32 or bf16 of two dimensions become 8-bit floats, not {} {}", op, name_of(x.dtype), x.shape.text());
  require(is_fp8(out.dtype()) && out.major == Major::K && out.rows() == x.shape[k_major ? 0 : 1] &&
              out.k() == padded_k(x.shape[k_major ? 1 : 0], out.granularity),
          "{}: {} does not become an operand {} in {}", op, x.shape.text(), out.data.shape.text(),
          name_of(out.dtype()));
}

void encode(const Context& ctx, const Tensor& x, Major x_major, const Operand& out, const char* op) {
  check_encoding(x, x_major, out, op);
  Scope scope(ctx);
  const Tensor row_amax = cpu::scratch(ctx, DType::F32, cpu::row_amax_shape(out));
  if (ctx.meta() || out.data.count() == 0) return;
  Timed timed(ctx.profile, Work::Codec, op);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::to_fp8(ctx, x, x_major, out);
  cpu::require_cpu(ctx, op);
  cpu::to_fp8(x, x_major, out, row_amax);
}

// Of 8-bit floats by rows: what is turned or decoded is all of it, so k has no padding that should not appear there.
void check_rows(const Operand& x, const char* op) {
  check_operand(x, op);
  require(is_fp8(x.dtype()) && x.granularity == Granularity::Row && x.max_scale,
          "{}: {} {} with a scale per {} is none of 8-bit floats by rows with a max_scale", op, name_of(x.dtype()),
          x.data.shape.text(), name_of(x.granularity));
}

bool by_rows(const Context& ctx, int64_t k, OperandFormat Fp8Recipe::*format) {
  return ctx.fp8 && (ctx.fp8->*format).granularity == Granularity::Row && padded_k(k, Granularity::Row) == k;
}

Operand product_input(const Context& ctx, int64_t rows, int64_t k, OperandFormat Fp8Recipe::*format) {
  return by_rows(ctx, k, format) ? fp8_operand(ctx, rows, k, ctx.fp8->*format) : Operand(ctx.empty({rows, k}));
}

}  // namespace

Operand fp8_operand(const Context& ctx, int64_t rows, int64_t k, OperandFormat format) {
  require(is_fp8(format.dtype) && format.granularity != Granularity::None,
          "an operand in {} with a scale per {} is none of 8-bit floats", name_of(format.dtype),
          name_of(format.granularity));
  const int64_t padded = padded_k(k, format.granularity);
  Operand x{ctx.empty(format.dtype, {rows, padded}),
            ctx.empty(DType::F32, scale_shape(rows, padded, format.granularity)), format.granularity};
  if (format.granularity == Granularity::Row) x.max_scale = ctx.empty(DType::F32, {1});
  return x;
}

Operand forward_input(const Context& ctx, int64_t rows, int64_t k) {
  return product_input(ctx, rows, k, &Fp8Recipe::x);
}

Operand gradient_input(const Context& ctx, int64_t rows, int64_t k) {
  return product_input(ctx, rows, k, &Fp8Recipe::dy);
}

Operand fp8_gradient_input(const Context& ctx, int64_t rows, int64_t k) {
  return by_rows(ctx, k, &Fp8Recipe::dy) ? fp8_operand(ctx, rows, k, ctx.fp8->dy) : Operand{};
}

Operand to_gradient_input(const Context& ctx, const Tensor& x) {
  return by_rows(ctx, x.cols(), &Fp8Recipe::dy) ? to_fp8(ctx, x, ctx.fp8->dy) : Operand(x);
}

bool written_as_made(const Context& ctx, const Operand& out, int64_t cols) {
  if (!is_fp8(out.dtype())) return true;
  return ctx.target() == Device::Cuda && ctx.compute() == DType::BF16 && out.granularity == Granularity::Row &&
         out.max_scale && out.k() == cols;
}

bool turned_as_made(const Context& ctx, const Operand& out) {
  return ctx.target() == Device::Cuda && ctx.compute() == DType::BF16 && out.granularity == Granularity::Tensor &&
         out.dtype() == DType::E4M3;
}

void to_fp8_into(const Context& ctx, const Tensor& x, const Operand& out) {
  encode(ctx, x, Major::K, out, "to_fp8");
}

void to_fp8_transposed_into(const Context& ctx, const Tensor& x, const Operand& out) {
  encode(ctx, x, Major::MN, out, "to_fp8_transposed");
}

void to_fp8_transposed_into(const Context& ctx, const Tensor& x, const Tensor& known_scale, const Operand& out) {
  constexpr const char* kOp = "to_fp8_transposed";
  check_encoding(x, Major::MN, out, kOp);
  require(known_scale.dtype == DType::F32 && known_scale.count() == 1, "{}: a known scale is fp32 [1], not {} {}", kOp,
          name_of(known_scale.dtype), known_scale.shape.text());
  require(out.granularity == Granularity::Tensor || out.granularity == Granularity::Row,
          "{}: a scale that is known is one for a tensor or a row, not for {}", kOp, name_of(out.granularity));
  if (ctx.meta() || out.data.count() == 0) return;
  Timed timed(ctx.profile, Work::Codec, kOp);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::to_fp8_transposed(ctx, x, known_scale, out);
  cpu::require_cpu(ctx, kOp);
  cpu::to_fp8_transposed(x, known_scale, out);
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

Operand to_fp8_transposed(const Context& ctx, const Operand& x, OperandFormat format) {
  const Operand out = fp8_operand(ctx, x.k(), x.rows(), format);
  to_fp8_transposed_into(ctx, x, out);
  return out;
}

void to_fp8_transposed_into(const Context& ctx, const Operand& x, const Operand& out) {
  check_rows(x, "to_fp8_transposed");
  check_operand(out, "to_fp8_transposed");
  require(out.rows() == x.k() && out.k() == padded_k(x.rows(), out.granularity),
          "to_fp8_transposed: {} does not become an operand {}", x.data.shape.text(), out.data.shape.text());
  Scope scope(ctx);
  if (out.granularity != Granularity::Tensor || out.dtype() != x.dtype())
    return to_fp8_transposed_into(ctx, to_numbers(ctx, x), out);
  if (ctx.meta() || out.data.count() == 0) return;
  Timed timed(ctx.profile, Work::Codec, "to_fp8_transposed");
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::transpose_codes(ctx, x, out);
  cpu::require_cpu(ctx, "to_fp8_transposed");
  cpu::transpose_codes(x, out);
}

void check_output(const Context& ctx, const Operand& out, Shape shape, const char* op, const char* what) {
  if (!is_fp8(out.dtype()))
    return require(out.major == Major::K && out.dtype() == ctx.compute() && out.data.shape == shape,
                   "{}: {} is {} {}, not {} {}", op, what, name_of(out.dtype()), out.data.shape.text(),
                   name_of(ctx.compute()), shape.text());
  check_operand(out, op);
  require(out.rows() == shape[0] && out.k() == padded_k(shape[1], out.granularity), "{}: {} is {}, not {}", op, what,
          out.data.shape.text(), shape.text());
}

Tensor to_numbers(const Context& ctx, const Operand& x) {
  check_rows(x, "to_numbers");
  const Tensor numbers = ctx.empty({x.rows(), x.k()});
  if (ctx.meta() || numbers.count() == 0) return numbers;
  Timed timed(ctx.profile, Work::Codec);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) {
      cuda::to_numbers(ctx, x, numbers);
      return numbers;
    }
  cpu::require_cpu(ctx, "to_numbers");
  cpu::to_numbers(x, numbers);
  return numbers;
}

void largest_scale(const Context& ctx, const Tensor& scales, const Tensor& to) {
  require(scales.dtype == DType::F32 && to.dtype == DType::F32 && to.count() == 1,
          "largest_scale: the largest of fp32 scales is fp32 [1], not {} {}", name_of(to.dtype), to.shape.text());
  if (ctx.meta()) return;
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::largest_scale(ctx, scales, to);
  cpu::require_cpu(ctx, "largest_scale");
  cpu::largest_scale(scales, to);
}

}  // namespace agoq::ops
