// Operands in 8-bit floats, made from numbers.
//
// Of each group of numbers that share a scale: amax = max |x|; scale = the smallest power of two with amax / scale <=
// the format's largest number; code = x / scale, rounded to nearest, ties to even (codec/formats.h: OperandE4M3,
// OperandE5M2; the same bits on every device). Only numbers 2^14 below amax (e4m3; e5m2: 2^29) lose more than the
// mantissa does.
#pragma once

#include <optional>

#include "device/context.h"
#include "ops/linear/delayed_scale.h"
#include "ops/linear/fp8_counts.h"
#include "ops/linear/product.h"

namespace agoq::ops {

// Codes of one type with scales of one granularity.
struct OperandFormat {
  DType dtype = DType::E4M3;  // or E5M2
  Granularity granularity = Granularity::Row;
  bool operator==(const OperandFormat&) const = default;
};

// How the three products of a linear layer are made in 8-bit floats: the operands' formats, and the sums.
struct Fp8Recipe {
  OperandFormat x, w, dy;     // y = x·wᵀ, and dx = dy·w
  OperandFormat dw_dy, dw_x;  // dW = dyᵀ·x: along tokens; both BF16: in the compute type
  Accumulation forward = Accumulation::Fp32, dx = Accumulation::Fp32, dw = Accumulation::Fp32;
  // Scales, one per tensor, are known before; none: they are found in the numbers.
  std::optional<DelayedScaling> delayed = std::nullopt;
  OperandFormat of(Fp8Role role) const { return std::array{x, w, dy, dw_dy, dw_x}[static_cast<size_t>(role)]; }
  bool dw_in_fp8() const { return is_fp8(dw_dy.dtype); }
  bool operator==(const Fp8Recipe&) const = default;
};

// An operand [rows, k padded] without contents, as temporaries.
Operand fp8_operand(const Context& ctx, int64_t rows, int64_t k, OperandFormat format);
// The same with a max_scale: its rows can be turned.
Operand fp8_rows(const Context& ctx, int64_t rows, int64_t k, DType dtype);
// The former in the format that ctx.fp8 has for `role`, counted.
Operand operand_for(const Context& ctx, int64_t rows, int64_t k, Fp8Role role);
// What the kernel that makes an input [rows, k] of a product is to write: in forward, and in backward for linear_dx and
// dW. 8-bit floats if ctx.fp8 gives them a scale per row, which such a kernel can find, and k needs no padding;
// otherwise numbers.
Operand forward_input(const Context& ctx, int64_t rows, int64_t k);
Operand gradient_input(const Context& ctx, int64_t rows, int64_t k);
// The latter if it is in 8-bit floats, otherwise none.
Operand fp8_gradient_input(const Context& ctx, int64_t rows, int64_t k);
// gradient_input() of numbers that are there: 8-bit floats, or they themselves.
Operand to_gradient_input(const Context& ctx, const Tensor& x);
// Whether a kernel that makes numbers [rows, cols] writes them as `out` itself. Where not, numbers are made first.
bool written_as_made(const Context& ctx, const Operand& out, int64_t cols);

// Likewise for the transpose of x, in e4m3 with one scale, which kernels make for dW.
bool turned_as_made(const Context& ctx, const Operand& out);

// x [rows, k] fp32 or bf16 -> [rows, k padded].
Operand to_fp8(const Context& ctx, const Tensor& x, OperandFormat format);
// With a scale per row and a max_scale.
Operand to_fp8_rows(const Context& ctx, const Tensor& x, DType dtype);
// x [k, rows] -> [rows, k padded]. Hopper multiplies 8-bit floats only if k is the major of both operands, so dW =
// dyᵀ·x needs dy and x this way, and dx = dy·w needs w.
Operand to_fp8_transposed(const Context& ctx, const Tensor& x, OperandFormat format);
// The same of codes: x in 8-bit floats with a scale per row and a max_scale. With one scale for all of the result this
// moves codes and changes their exponents; numbers that become subnormal are rounded.
Operand to_fp8_transposed(const Context& ctx, const Operand& x, OperandFormat format);
// The same into a given operand.
void to_fp8_into(const Context& ctx, const Tensor& x, const Operand& out);
void to_fp8_transposed_into(const Context& ctx, const Tensor& x, const Operand& out);
void to_fp8_transposed_into(const Context& ctx, const Operand& x, const Operand& out);
// A weight w [out, in] with a scale per row; leaves in `transposed_scale`, fp32 [in], the scales that its transpose
// has.
void weight_to_fp8_into(const Context& ctx, const Tensor& w, const Operand& out, const Tensor& transposed_scale);
// Both: w [out, in] and its transpose, which may have scales of any one granularity.
void weight_to_fp8(const Context& ctx, const Tensor& w, const Operand& out, const Operand& transposed);
// x [k, rows] -> codes of `out` [rows, k padded], whose scales are there: each at least what the rule above gives, per
// row or for all.
void to_fp8_transposed_with(const Context& ctx, const Tensor& x, const Operand& out);

// x [rows, k] -> [rows, k padded], or of its transpose, with the scale of a site, whose amax takes note of x. Reads x
// once if the scale is known.
Operand to_fp8(const Context& ctx, const Operand& x, OperandFormat format, const ScaleSite& site);
// The same in the format that ctx.fp8 has for `role`, counted.
Operand to_fp8(const Context& ctx, const Operand& x, Fp8Role role, const ScaleSite& site);
// The site of an operand among those of its product; null if ctx.fp8 has scales found in the numbers. An error if it
// wants sites and there are none.
const ScaleSite* site_of(const Context& ctx, const ScaleSites* sites, Fp8Role role);

// What an op writes: numbers in the compute type, or an operand in 8-bit floats. An error names `op` and `what` if
// `out` is neither of this shape.
void check_output(const Context& ctx, const Operand& out, Shape shape, const char* op, const char* what);

// The numbers of an operand by rows in the compute type, [rows, k].
Tensor to_numbers(const Context& ctx, const Operand& x);
// to [1] = the largest of the scales [n]; a NaN is above all.
void largest_scale(const Context& ctx, const Tensor& scales, const Tensor& to);

}  // namespace agoq::ops
