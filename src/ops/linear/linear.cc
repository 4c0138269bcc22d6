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

// A CPU does without, but what runs there should run on a GPU.
void check_scale_alignment(const Operand& x, const char* op) {
  const auto address = reinterpret_cast<uintptr_t>(x.scale.data);
  require(!is_fp8(x.dtype()) || address % kScaleAlignment == 0,
          "{}: the scales of an operand {} do not begin at a multiple of {} bytes", op, x.data.shape.text(),
          kScaleAlignment);
}

void run(const Context& ctx, const Product& p, const char* op) {
  check(p, op);
  Scope scope(ctx);
  const cpu::ProductTiles tiles = cpu::push_tiles(ctx, p);
  const Tensor workspace = ctx.scratch(Device::Cuda, DType::U8, {cuda::kGemmWorkspace});
  if (ctx.meta()) return;
  for (const Operand* x : {&p.a, &p.b}) check_scale_alignment(*x, op);
  if (ctx.profile)
    ctx.profile->gemm_flops +=
        2.0 * static_cast<double>(p.m()) * static_cast<double>(p.n()) * static_cast<double>(p.k());
  Timed timed(ctx.profile, Work::Gemm, op);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::multiply(ctx, p, workspace);
  cpu::require_cpu(ctx, op);
  cpu::multiply(p, tiles);
}

// `sites`: of the weight.
Operand as_fp8(const Context& ctx, const Operand& x, Fp8Role role, const ScaleSites* sites) {
  if (is_fp8(x.dtype())) return x;
  if (const ScaleSite* site = site_of(ctx, sites, role)) return to_fp8(ctx, x, role, *site);
  const Operand out = operand_for(ctx, x.rows(), x.k(), role);
  x.major == Major::K ? to_fp8_into(ctx, x.data, out) : to_fp8_transposed_into(ctx, x.data, out);
  return out;
}

// For forward. One scale for all of a matrix is that of its transpose, too.
Operand as_fp8(const Context& ctx, const LinearWeight& w) {
  if (w.codes.data) return w.codes;
  if (!w.transposed_scale || is_fp8(w.w.dtype())) return as_fp8(ctx, w.w, Fp8Role::W, w.sites);
  Operand out = operand_for(ctx, w.w.rows(), w.w.k(), Fp8Role::W);
  if (out.granularity == Granularity::Row) {
    weight_to_fp8_into(ctx, w.w.data, out, w.transposed_scale);
  } else {
    out.scale = w.transposed_scale;
    to_fp8_into(ctx, w.w.data, out);
  }
  return out;
}

// For backward.
Operand transposed_as_fp8(const Context& ctx, const LinearWeight& w) {
  if (w.transposed.data) return w.transposed;
  if (const ScaleSite* site = site_of(ctx, w.sites, Fp8Role::W))
    return to_fp8(ctx, transposed(w.w.data), Fp8Role::W, *site);
  Operand out = operand_for(ctx, w.w.k(), w.w.rows(), Fp8Role::W);
  if (!w.transposed_scale) {
    to_fp8_transposed_into(ctx, w.w.data, out);
    return out;
  }
  out.scale = w.transposed_scale;
  to_fp8_transposed_with(ctx, w.w.data, out);
  return out;
}

// y = x·wᵀ + ...: x and w become 8-bit floats if the context asks for it and they are numbers still.
void forward(const Context& ctx, Product p, const LinearWeight& w, const char* op) {
  Scope scope(ctx);
  p.b = w.w;
  if (const Fp8Recipe* fp8 = ctx.fp8; fp8 && !(is_fp8(p.a.dtype()) && is_fp8(p.b.dtype()))) {
    p.accumulation = fp8->forward;
    p.a = as_fp8(ctx, p.a, Fp8Role::X, w.sites);
    p.b = as_fp8(ctx, w);
  }
  run(ctx, p, op);
}

void check_matrices(const Operand& a, const Operand& b, const char* op) {
  require(a.data.shape.rank() == 2 && b.data.shape.rank() == 2, "{}: operands have 2 dimensions, not {} and {}", op,
          a.data.shape.text(), b.data.shape.text());
}

}  // namespace

Tensor linear(const Context& ctx, const Operand& x, const LinearWeight& w, const Tensor& bias, const Tensor& residual,
              Accumulation accumulation) {
  check_matrices(x, w.w, "linear");
  const Tensor y = ctx.empty({x.rows(), w.w.rows()});
  forward(ctx, {x, {}, y, 0, residual, bias, accumulation}, w, "linear");
  return y;
}

void linear_into(const Context& ctx, const Operand& x, const LinearWeight& w, const Tensor& bias, const Tensor& y) {
  check_matrices(x, w.w, "linear");
  forward(ctx, {x, {}, y, 0, {}, bias}, w, "linear");
}

void linear_add(const Context& ctx, const Operand& x, const LinearWeight& w, const Tensor& y) {
  check_matrices(x, w.w, "linear_add");
  forward(ctx, {x, {}, y, 1}, w, "linear_add");
}

Tensor linear_dx(const Context& ctx, const Operand& dy, const LinearWeight& w) {
  check_matrices(dy, w.w, "linear_dx");
  const Tensor dx = ctx.empty({dy.rows(), w.w.k()});
  Scope scope(ctx);
  if (const Fp8Recipe* fp8 = ctx.fp8)
    run(ctx, {as_fp8(ctx, dy, Fp8Role::Dy, w.sites), transposed_as_fp8(ctx, w), dx, 0, {}, {}, fp8->dx}, "linear_dx");
  else
    run(ctx, {dy, transposed(w.w.data), dx}, "linear_dx");
  return dx;
}

void gemm(const Context& ctx, const Operand& a, const Operand& b, const Tensor& c, float beta,
          Accumulation accumulation) {
  check_matrices(a, b, "gemm");
  run(ctx, {a, b, c, beta, {}, {}, accumulation}, "gemm");
}

}  // namespace agoq::ops
