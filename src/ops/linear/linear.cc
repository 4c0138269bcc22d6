#include "ops/linear/linear.h"

#include <limits>

#include "ops/cpu.h"
#include "ops/linear/linear_cpu.h"
#include "ops/linear/linear_cuda.h"

namespace agoq::ops {
namespace {

bool is_float(const Tensor& t) {
  return t.dtype == DType::F32 || t.dtype == DType::BF16;
}

void check(const Product& p, const char* op) {
  const auto matrix = [&](const Tensor& t, bool transposed, int64_t rows, int64_t cols) {
    return t.shape == (transposed ? Shape{cols, rows} : Shape{rows, cols});
  };
  require(matrix(p.a, p.transpose_a, p.m, p.k) && matrix(p.b, p.transpose_b, p.k, p.n) && matrix(p.c, false, p.m, p.n),
          "{}: shapes do not fit: {}{} times {}{} into {}", op, p.a.shape.text(), p.transpose_a ? " transposed" : "",
          p.b.shape.text(), p.transpose_b ? " transposed" : "", p.c.shape.text());
  require(!p.residual || p.residual.shape == p.c.shape, "{}: residual {} is added to a result {}", op,
          p.residual.shape.text(), p.c.shape.text());
  require(!p.bias || p.bias.count() == p.n, "{}: bias {} is added to a result {}", op, p.bias.shape.text(),
          p.c.shape.text());
  for (const Tensor* t : {&p.a, &p.b, &p.c, &p.residual, &p.bias})
    require(!*t || is_float(*t), "{}: operands are fp32 or bf16, not {}", op, name_of(t->dtype));
  for (int64_t dim : {p.m, p.n, p.k})
    require(dim <= std::numeric_limits<int32_t>::max(), "{}: dimension {} is beyond the BLAS' 2^31", op, dim);
}

void run(const Context& ctx, const Product& p, const char* op) {
  check(p, op);
  Scope scope(ctx);
  const cpu::ProductTiles tiles = cpu::push_tiles(ctx, p);
  const Tensor workspace = ctx.scratch(Device::Cuda, DType::U8, {cuda::kGemmWorkspace});
  if (ctx.meta()) return;
  if (ctx.profile)
    ctx.profile->gemm_flops += 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  Timed timed(ctx.profile, Work::Gemm, op);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::multiply(ctx, p, workspace);
  cpu::require_cpu(ctx, op);
  cpu::multiply(p, tiles);
}

void check_matrices(const Tensor& a, const Tensor& b, const char* op) {
  require(a.shape.rank() == 2 && b.shape.rank() == 2, "{}: operands have 2 dimensions, not {} and {}", op,
          a.shape.text(), b.shape.text());
}

}  // namespace

Tensor linear(const Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& residual) {
  check_matrices(x, w, "linear");
  const Tensor y = ctx.empty({x.shape[0], w.shape[0]});
  run(ctx, {x, w, y, false, true, 0, residual, bias, x.shape[0], w.shape[0], x.shape[1]}, "linear");
  return y;
}

void linear_into(const Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  check_matrices(x, w, "linear");
  run(ctx, {x, w, y, false, true, 0, {}, bias, x.shape[0], w.shape[0], x.shape[1]}, "linear");
}

void linear_add(const Context& ctx, const Tensor& x, const Tensor& w, const Tensor& y) {
  gemm(ctx, x, Transpose::No, w, Transpose::Yes, y, 1.0f);
}

Tensor linear_dx(const Context& ctx, const Tensor& dy, const Tensor& w) {
  check_matrices(dy, w, "linear_dx");
  const Tensor dx = ctx.empty({dy.shape[0], w.shape[1]});
  run(ctx, {dy, w, dx, false, false, 0, {}, {}, dy.shape[0], w.shape[1], dy.shape[1]}, "linear_dx");
  return dx;
}

void gemm(const Context& ctx, const Tensor& a, Transpose ta, const Tensor& b, Transpose tb, const Tensor& c,
          float beta) {
  check_matrices(a, b, "gemm");
  const bool transpose_a = ta == Transpose::Yes, transpose_b = tb == Transpose::Yes;
  const int64_t m = a.shape[transpose_a ? 1 : 0], k = a.shape[transpose_a ? 0 : 1], n = b.shape[transpose_b ? 0 : 1];
  run(ctx, {a, b, c, transpose_a, transpose_b, beta, {}, {}, m, n, k}, "gemm");
}

}  // namespace agoq::ops
