// Matrix products with weights [out, in]: forward, gradient of the input. (Gradient of the weight:
// ops/gradient/accumulate.h.)
#pragma once

#include "device/context.h"

namespace agoq::ops {

// y = x·wᵀ (+ bias) (+ residual); x [T, in], w [out, in], bias [out], residual [T, out] -> [T, out].
Tensor linear(const Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias = {},
              const Tensor& residual = {});
// The same into a given y.
void linear_into(const Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y);
// y += x·wᵀ, in place: how a layer adds to the residual stream.
void linear_add(const Context& ctx, const Tensor& x, const Tensor& w, const Tensor& y);
// dx = dy·w; dy [T, out] -> [T, in].
Tensor linear_dx(const Context& ctx, const Tensor& dy, const Tensor& w);

enum class Transpose : bool { No, Yes };
// The one entry to the BLAS: c = op(a)·op(b) + beta·c for row-major fp32 or bf16 operands, fp32 accumulation. bf16
// operands are widened slab by slab on the CPU and the result is rounded once. `m, n, k` come from the shapes; mismatch
// is an error.
void gemm(const Context& ctx, const Tensor& a, Transpose ta, const Tensor& b, Transpose tb, const Tensor& c,
          float beta = 0);

}  // namespace agoq::ops
