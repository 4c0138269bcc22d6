// Operands in 8-bit floats, made from numbers.
//
// Of each group of numbers that share a scale: amax = max |x|; scale = the smallest power of two with amax / scale <=
// the format's largest number; code = x / scale, rounded to nearest, ties to even (codec/formats.h: OperandE4M3,
// OperandE5M2; the same bits on every device). Only numbers 2^14 below amax (e4m3; e5m2: 2^29) lose more than the
// mantissa does.
#pragma once

#include "device/context.h"
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
  OperandFormat dw_dy, dw_x;  // dW = dyᵀ·x: along tokens
  Accumulation forward = Accumulation::Fp32, dx = Accumulation::Fp32, dw = Accumulation::Fp32;
  bool operator==(const Fp8Recipe&) const = default;
};

// An operand [rows, k padded] without contents, as temporaries.
Operand fp8_operand(const Context& ctx, int64_t rows, int64_t k, OperandFormat format);
// x [rows, k] fp32 or bf16 -> [rows, k padded].
Operand to_fp8(const Context& ctx, const Tensor& x, OperandFormat format);
// x [k, rows] -> [rows, k padded]. Hopper multiplies 8-bit floats only if k is the major of both operands, so dW =
// dyᵀ·x needs dy and x this way, and dx = dy·w needs w.
Operand to_fp8_transposed(const Context& ctx, const Tensor& x, OperandFormat format);
// The same into a given operand.
void to_fp8_into(const Context& ctx, const Tensor& x, const Operand& out);
void to_fp8_transposed_into(const Context& ctx, const Tensor& x, const Operand& out);

}  // namespace agoq::ops
