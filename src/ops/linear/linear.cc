#include "ops/linear/linear.h"

#include <algorithm>
#include <limits>

#include "ops/cpu.h"
#include "ops/linear/fp8.h"
#include "ops/linear/linear_cpu.h"
#include "ops/linear/linear_cuda.h"

namespace agoq::ops {
namespace {

void check(const Product& p, const char* op) {
  check_operand(p.a, op);
  check_operand(p.b, op);
  require(p.a.k() == p.b.k() && p.c.shape == Shape{p.m(), p.n()}, "{}: shapes do not fit: {}{} times {}{} into {}", op,
          p.a.data.shape.text(), p.a.major == Major::MN ? " transposed" : "", p.b.data.shape.text(),
          p.b.major == Major::K ? " transposed" : "", p.c.shape.text());
  require(p.a.stride == 0 && p.b.stride == 0, "{}: an operand is a whole matrix, not a part of one with rows of {}", op,
          std::max(p.a.stride, p.b.stride));
  require(is_fp8(p.a.dtype()) == is_fp8(p.b.dtype()),
          "{}: an 8-bit float is multiplied by an 8-bit float, not {} by {}", op, name_of(p.a.dtype()),
          name_of(p.b.dtype()));
  require(!p.residual || p.residual.shape == p.c.shape, "{}: residual {} is added to a result {}", op,
          p.residual.shape.text(), p.c.shape.text());
  require(!p.bias || p.bias.count() == p.n(), "{}: bias {} is added to a result {}", op, p.bias.shape.text(),
          p.c.shape.text());
  for (const Tensor* t : {&p.c, &p.residual, &p.bias})
    require(!*t || t->dtype == DType::F32 || t->dtype == DType::BF16, "{}: a result is fp32 or bf16, not {}", op,
            name_of(t->dtype));
  for (int64_t dim : {p.m(), p.n(), p.k()})
    require(dim <= std::numeric_limits<int32_t>::max(), "{}: dimension {} is beyond the BLAS' 2^31", op, dim);
}

void run(const Context& ctx, const Product& p, const char* op) {
  check(p, op);
  Scope scope(ctx);
  const cpu::ProductTiles tiles = cpu::push_tiles(ctx, p);
  const Tensor workspace = ctx.scratch(Device::Cuda, DType::U8, {cuda::kGemmWorkspace});
  if (ctx.meta()) return;
  if (ctx.profile)
    ctx.profile->gemm_flops +=
        2.0 * static_cast<double>(p.m()) * static_cast<double>(p.n()) * static_cast<double>(p.k());
  Timed timed(ctx.profile, Work::Gemm, op);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::multiply(ctx, p, workspace);
  cpu::require_cpu(ctx, op);
  cpu::multiply(p, tiles);
}

// A scale that the whole of a weight can have, so that its transpose can, too.
bool has_whole_scale(const Operand& w, OperandFormat format) {
  return w.max_scale && (format.granularity == Granularity::Row || format.granularity == Granularity::Tensor);
}

// x or a weight for forward; the weight's max_scale is set if it has one.
Operand as_fp8(const Context& ctx, const Operand& x, OperandFormat format) {
  if (is_fp8(x.dtype())) return x;
  Operand out = fp8_operand(ctx, x.rows(), x.k(), format);
  if (has_whole_scale(x, format)) (format.granularity == Granularity::Row ? out.max_scale : out.scale) = x.max_scale;
  x.major == Major::K ? to_fp8_into(ctx, x.data, out) : to_fp8_transposed_into(ctx, x.data, out);
  return out;
}

// A weight for backward: with one scale for all if forward has left it.
Operand transposed_as_fp8(const Context& ctx, const Operand& w, OperandFormat format) {
  const Operand out = fp8_operand(ctx, w.k(), w.rows(), format);
  if (has_whole_scale(w, format))
    to_fp8_transposed_into(ctx, w.data, w.max_scale, out);
  else
    to_fp8_transposed_into(ctx, w.data, out);
  return out;
}

// y = x·wᵀ + ...: x and w become 8-bit floats if the context asks for it and they are numbers still.
void forward(const Context& ctx, Product p, const char* op) {
  Scope scope(ctx);
  if (const Fp8Recipe* fp8 = ctx.fp8; fp8 && !(is_fp8(p.a.dtype()) && is_fp8(p.b.dtype()))) {
    p.accumulation = fp8->forward;
    p.a = as_fp8(ctx, p.a, fp8->x);
    p.b = as_fp8(ctx, p.b, fp8->w);
  }
  run(ctx, p, op);
}

void check_matrices(const Operand& a, const Operand& b, const char* op) {
  require(a.data.shape.rank() == 2 && b.data.shape.rank() == 2, "{}: operands have 2 dimensions, not {} and {}", op,
          a.data.shape.text(), b.data.shape.text());
}

}  // namespace

Tensor linear(const Context& ctx, const Operand& x, const Operand& w, const Tensor& bias, const Tensor& residual,
              Accumulation accumulation) {
  check_matrices(x, w, "linear");
  const Tensor y = ctx.empty({x.rows(), w.rows()});
  forward(ctx, {x, w, y, 0, residual, bias, accumulation}, "linear");
  return y;
}

void linear_into(const Context& ctx, const Operand& x, const Operand& w, const Tensor& bias, const Tensor& y) {
  check_matrices(x, w, "linear");
  forward(ctx, {x, w, y, 0, {}, bias}, "linear");
}

void linear_add(const Context& ctx, const Operand& x, const Operand& w, const Tensor& y) {
  check_matrices(x, w, "linear_add");
  forward(ctx, {x, w, y, 1}, "linear_add");
}

Tensor linear_dx(const Context& ctx, const Operand& dy, const Operand& w) {
  check_matrices(dy, w, "linear_dx");
  const Tensor dx = ctx.empty({dy.rows(), w.k()});
  Scope scope(ctx);
  if (const Fp8Recipe* fp8 = ctx.fp8)
    run(ctx, {as_fp8(ctx, dy, fp8->dy), transposed_as_fp8(ctx, w, fp8->w), dx, 0, {}, {}, fp8->dx}, "linear_dx");
  else
    run(ctx, {dy, transposed(w.data), dx}, "linear_dx");
  return dx;
}

void gemm(const Context& ctx, const Operand& a, const Operand& b, const Tensor& c, float beta,
          Accumulation accumulation) {
  check_matrices(a, b, "gemm");
  run(ctx, {a, b, c, beta, {}, {}, accumulation}, "gemm");
}

}  // namespace agoq::ops
