#include "ops/linear/fp8.h"

#include "device/transfer.h"
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

// What is turned or decoded is all of it, so k has no padding that should not appear there.
void check_rows(const Operand& x, const char* op) {
  check_operand(x, op);
  require(is_fp8(x.dtype()) && x.granularity == Granularity::Row,
          "{}: {} {} with a scale per {} is none of 8-bit floats by rows", op, name_of(x.dtype()), x.data.shape.text(),
          name_of(x.granularity));
}

// Raises an amax to the largest magnitude of x.
void note_amax(const Context& ctx, const Tensor& x, const Tensor& amax, const char* op) {
  if (ctx.meta() || x.count() == 0) return;
  Timed timed(ctx.profile, Work::Codec, op);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::note_amax(ctx, x, amax);
  cpu::require_cpu(ctx, op);
  cpu::note_amax(x, amax);
}

// An operand without contents for the numbers of a site.
Operand site_operand(const Context& ctx, const Operand& x, OperandFormat format, const ScaleSite& site) {
  require(format.granularity == Granularity::Tensor,
          "to_fp8: a scale that is known before is one for a tensor, not for {}", name_of(format.granularity));
  if (!site.known) return fp8_operand(ctx, x.rows(), x.k(), format);
  return {ctx.empty(format.dtype, {x.rows(), padded_k(x.k(), format.granularity)}), site.scale, format.granularity};
}

void encode(const Context& ctx, const Operand& x, const ScaleSite& site, const Operand& out) {
  const char* op = x.major == Major::K ? "to_fp8" : "to_fp8_transposed";
  if (!site.known) {
    note_amax(ctx, x.data, site.amax, op);
    return encode(ctx, x.data, x.major, out, op);
  }
  check_encoding(x.data, x.major, out, op);
  Scope scope(ctx);
  const Tensor row_amax = cpu::scratch(ctx, DType::F32, cpu::row_amax_shape(out));
  if (ctx.meta() || out.data.count() == 0) return;
  Timed timed(ctx.profile, Work::Codec, op);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::to_fp8(ctx, x.data, x.major, site, out);
  cpu::require_cpu(ctx, op);
  cpu::to_fp8(x.data, x.major, site, out, row_amax);
}

bool by_rows(const Context& ctx, int64_t k, Fp8Role role) {
  return ctx.fp8 && ctx.fp8->of(role).granularity == Granularity::Row && padded_k(k, Granularity::Row) == k;
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

Operand fp8_rows(const Context& ctx, int64_t rows, int64_t k, DType dtype) {
  Operand x = fp8_operand(ctx, rows, k, {dtype, Granularity::Row});
  x.max_scale = ctx.empty(DType::F32, {1});
  return x;
}

Operand operand_for(const Context& ctx, int64_t rows, int64_t k, Fp8Role role) {
  return counted(ctx, fp8_operand(ctx, rows, k, ctx.fp8->of(role)), role);
}

Operand forward_input(const Context& ctx, int64_t rows, int64_t k) {
  return by_rows(ctx, k, Fp8Role::X) ? operand_for(ctx, rows, k, Fp8Role::X) : Operand(ctx.empty({rows, k}));
}

Operand fp8_gradient_input(const Context& ctx, int64_t rows, int64_t k) {
  if (!by_rows(ctx, k, Fp8Role::Dy)) return {};
  return counted(ctx, fp8_rows(ctx, rows, k, ctx.fp8->dy.dtype), Fp8Role::Dy);
}

Operand gradient_input(const Context& ctx, int64_t rows, int64_t k) {
  const Operand in_fp8 = fp8_gradient_input(ctx, rows, k);
  return in_fp8.data ? in_fp8 : Operand(ctx.empty({rows, k}));
}

Operand to_gradient_input(const Context& ctx, const Tensor& x) {
  const Operand in_fp8 = fp8_gradient_input(ctx, x.shape[0], x.cols());
  if (!in_fp8.data) return x;
  to_fp8_into(ctx, x, in_fp8);
  return in_fp8;
}

bool written_as_made(const Context& ctx, const Operand& out, int64_t cols) {
  if (!is_fp8(out.dtype())) return true;
  return ctx.target() == Device::Cuda && ctx.compute() == DType::BF16 && out.granularity == Granularity::Row &&
         out.k() == cols;
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

void to_fp8_transposed_with(const Context& ctx, const Tensor& x, const Operand& out) {
  constexpr const char* kOp = "to_fp8_transposed";
  check_encoding(x, Major::MN, out, kOp);
  require(out.granularity == Granularity::Tensor || out.granularity == Granularity::Row,
          "{}: scales that are known belong to a tensor or to rows, not to {}", kOp, name_of(out.granularity));
  if (ctx.meta() || out.data.count() == 0) return;
  Timed timed(ctx.profile, Work::Codec, kOp);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::to_fp8_transposed_with(ctx, x, out);
  cpu::require_cpu(ctx, kOp);
  cpu::to_fp8_transposed_with(x, out);
}

void weight_to_fp8_into(const Context& ctx, const Tensor& w, const Operand& out, const Tensor& transposed_scale) {
  constexpr const char* kOp = "weight_to_fp8";
  check_encoding(w, Major::K, out, kOp);
  require(out.granularity == Granularity::Row && transposed_scale.dtype == DType::F32 &&
              transposed_scale.shape == Shape{w.cols()},
          "{}: a weight {} with a scale per {} does not leave {} {} as scales of its transpose", kOp, w.shape.text(),
          name_of(out.granularity), name_of(transposed_scale.dtype), transposed_scale.shape.text());
  Scope scope(ctx);
  const Tensor row_amax = cpu::scratch(ctx, DType::F32, cpu::row_amax_shape(out));
  const Tensor of_ctas = ctx.scratch(Device::Cuda, DType::BF16, cuda::column_scales_shape(out));
  if (ctx.meta() || out.data.count() == 0) return;
  Timed timed(ctx.profile, Work::Codec, kOp);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::weight_to_fp8(ctx, w, out, of_ctas, transposed_scale);
  cpu::require_cpu(ctx, kOp);
  cpu::to_fp8(w, Major::K, out, row_amax);
  cpu::find_transposed_scale(w, out.dtype(), transposed_scale);
}

void weight_to_fp8(const Context& ctx, const Tensor& w, const Operand& out, const Operand& transposed) {
  if (out.granularity == Granularity::Row) {
    weight_to_fp8_into(ctx, w, out, transposed.scale);
    return to_fp8_transposed_with(ctx, w, transposed);
  }
  to_fp8_into(ctx, w, out);
  if (out.granularity != Granularity::Tensor) return to_fp8_transposed_into(ctx, w, transposed);
  copy(ctx, out.scale, transposed.scale);
  to_fp8_transposed_with(ctx, w, transposed);
}

Operand to_fp8(const Context& ctx, const Tensor& x, OperandFormat format) {
  require(x.shape.rank() == 2, "to_fp8: a matrix has two dimensions, not {}", x.shape.text());
  const Operand out = fp8_operand(ctx, x.shape[0], x.shape[1], format);
  to_fp8_into(ctx, x, out);
  return out;
}

Operand to_fp8_rows(const Context& ctx, const Tensor& x, DType dtype) {
  require(x.shape.rank() == 2, "to_fp8: a matrix has two dimensions, not {}", x.shape.text());
  const Operand out = fp8_rows(ctx, x.shape[0], x.shape[1], dtype);
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

Operand to_fp8(const Context& ctx, const Operand& x, OperandFormat format, const ScaleSite& site) {
  const Operand out = site_operand(ctx, x, format, site);
  encode(ctx, x, site, out);
  return out;
}

Operand to_fp8(const Context& ctx, const Operand& x, Fp8Role role, const ScaleSite& site) {
  const Operand out = counted(ctx, site_operand(ctx, x, ctx.fp8->of(role), site), role);
  encode(ctx, x, site, out);
  return out;
}

const ScaleSite* site_of(const Context& ctx, const ScaleSites* sites, Fp8Role role) {
  if (!ctx.fp8->delayed) return nullptr;
  require(sites != nullptr, "a product of operands whose scales are known before does not know whose they are");
  if (role == Fp8Role::W) return &sites->w;
  return role == Fp8Role::X || role == Fp8Role::DwX ? &sites->x : &sites->dy;
}

void to_fp8_transposed_into(const Context& ctx, const Operand& x, const Operand& out) {
  check_rows(x, "to_fp8_transposed");
  check_operand(out, "to_fp8_transposed");
  require(static_cast<bool>(x.max_scale), "to_fp8_transposed: the largest scale of rows {} is not known",
          x.data.shape.text());
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
