// Matrix products with weights [out, in]: forward, gradient of the input. (Gradient of the weight:
// ops/gradient/accumulate.h.) Where an argument is an Operand, a tensor of fp32 or bf16 numbers will do. A context with
// an Fp8Recipe multiplies numbers in 8-bit floats, but for gemm(), which takes operands as they are.
#pragma once

#include "device/context.h"
#include "ops/linear/product.h"

namespace agoq::ops {

struct ScaleSites;

// A weight [out, in] as products read it; a tensor or an operand will do. With an Fp8Recipe, forward multiplies by w in
// 8-bit floats and backward by wᵀ, whose scales belong to other groups.
struct LinearWeight {
  Operand w;  // numbers, or 8-bit floats for forward alone
  // fp32, or none: the scales of wᵀ, as its granularity has them. linear() finds them while it casts w, and linear_dx()
  // need not look for them. Contexts that run at once must not share such a weight.
  Tensor transposed_scale = {};
  // Codes of w and of wᵀ in the recipe's format, which no product need cast again; or none.
  Operand codes = {}, transposed = {};
  // Of its products' operands, where the recipe says delayed.
  const ScaleSites* sites = nullptr;

  LinearWeight() = default;
  LinearWeight(const Operand& weight) : w(weight) {}  // NOLINT(google-explicit-constructor)
  LinearWeight(const Tensor& weight) : w(weight) {}   // NOLINT(google-explicit-constructor)
  LinearWeight(const Tensor& weight, const Tensor& scale_of_transpose)
      : w(weight), transposed_scale(scale_of_transpose) {}
  LinearWeight(const Tensor& weight, const Operand& codes_of_w, const Operand& codes_of_transpose)
      : w(weight), codes(codes_of_w), transposed(codes_of_transpose) {}
};

// y = x·wᵀ (+ bias) (+ residual); x [T, in], w [out, in], bias [out], residual [T, out] -> [T, out].
Tensor linear(const Context& ctx, const Operand& x, const LinearWeight& w, const Tensor& bias = {},
              const Tensor& residual = {}, Accumulation accumulation = Accumulation::Fp32);
// The same into a given y.
void linear_into(const Context& ctx, const Operand& x, const LinearWeight& w, const Tensor& bias, const Tensor& y);
// y += x·wᵀ, in place: how a layer adds to the residual stream.
void linear_add(const Context& ctx, const Operand& x, const LinearWeight& w, const Tensor& y);
// dx = dy·w; dy [T, out], numbers w [out, in] -> [T, in].
Tensor linear_dx(const Context& ctx, const Operand& dy, const LinearWeight& w);

// The one entry to the BLAS: c = a·bᵀ + beta·c for row-major operands a [m, k] and b [n, k], summed in fp32 and rounded
// once. A CPU widens bf16 and decodes 8-bit floats tile by tile. A mismatch of shapes is an error.
void gemm(const Context& ctx, const Operand& a, const Operand& b, const Tensor& c, float beta = 0,
          Accumulation accumulation = Accumulation::Fp32);

}  // namespace agoq::ops
