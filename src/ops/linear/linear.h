// Matrix products with weights [out, in]: forward, gradient of the input. (Gradient of the weight:
// ops/gradient/accumulate.h.) Where an argument is an Operand, a tensor of fp32 or bf16 numbers will do. A context with
// an Fp8Recipe multiplies numbers in 8-bit floats, but for gemm(), which takes operands as they are.
#pragma once

#include "device/context.h"
#include "ops/linear/product.h"

namespace agoq::ops {

// y = x·wᵀ (+ bias) (+ residual); x [T, in], w [out, in], bias [out], residual [T, out] -> [T, out]. With an Fp8Recipe
// it writes the max_scale of w, if w has one: contexts that run at once must not share such a weight.
Tensor linear(const Context& ctx, const Operand& x, const Operand& w, const Tensor& bias = {},
              const Tensor& residual = {}, Accumulation accumulation = Accumulation::Fp32);
// The same into a given y.
void linear_into(const Context& ctx, const Operand& x, const Operand& w, const Tensor& bias, const Tensor& y);
// y += x·wᵀ, in place: how a layer adds to the residual stream.
void linear_add(const Context& ctx, const Operand& x, const Operand& w, const Tensor& y);
// dx = dy·w; dy [T, out], numbers w [out, in] -> [T, in]. With an Fp8Recipe it reads the max_scale that w has of
// linear().
Tensor linear_dx(const Context& ctx, const Operand& dy, const Operand& w);

// The one entry to the BLAS: c = a·bᵀ + beta·c for row-major operands a [m, k] and b [n, k], summed in fp32 and rounded
// once. A CPU widens bf16 and decodes 8-bit floats tile by tile. A mismatch of shapes is an error.
void gemm(const Context& ctx, const Operand& a, const Operand& b, const Tensor& c, float beta = 0,
          Accumulation accumulation = Accumulation::Fp32);

}  // namespace agoq::ops
