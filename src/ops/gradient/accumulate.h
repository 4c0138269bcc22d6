// Main gradients: accumulated over micro-batches in 8 bits (QuanGrad, design 4).
#pragma once

#include "codec/codec.h"
#include "ops/linear/product.h"

namespace agoq::ops {

struct ScaleSites;

// Where the gradient of one parameter accumulates. Codec Fp32 or Bf16: plain; otherwise decode + add + encode in one
// pass.
struct MainGrad {
  codec::Quantized data;                // [rows, cols] like the parameter
  uint32_t tensor = 0;                  // logical tensor id, for the draws
  bool stochastic = true;               // how sums are rounded
  bool fresh = false;                   // the sum so far is zero, whatever `data` holds: overwrite it, do not read it
  codec::GlobalOffset global_offset{};  // of `data` in the logical tensor, for the draws
  const ScaleSites* sites = nullptr;    // of the parameter's products, as LinearWeight::sites
  // Of this tensor in this micro-batch. A tied embedding is rounded twice, with a purpose for each, so that draws
  // differ.
  codec::Rounding rounding(const RandomKey& step_key, RngStream stream = RngStream::Gradient) const;
};

// For those who have nothing to add: then nobody overwrites what is not to be read.
void zero_if_fresh(const Context& ctx, const MainGrad& grad);
// main += delta; delta is fp32 or bf16 [end - begin, cols] for rows [begin, end) of the gradient.
void accumulate(const Context& ctx, const MainGrad& grad, const Tensor& delta, int64_t begin = 0);
// main += dyᵀ·x; dy [T, out], x [T, in]. In 8-bit floats if the context has an Fp8Recipe. The product is made and
// folded in by slabs of rows, so no full dW exists.
void accumulate_dw(const Context& ctx, const MainGrad& grad, const Tensor& dy, const Tensor& x);
// The same of operands as a layer has them: dy [T, out], numbers or 8-bit floats by rows; and xᵀ [in, T], which is
// transposed(x), or 8-bit floats made for this.
void accumulate_dw(const Context& ctx, const MainGrad& grad, const Operand& dy, const Operand& xt);
// The same of operands in 8-bit floats: main += a·bᵀ; a [out, T] and b [in, T] (ops/linear/fp8.h: to_fp8_transposed).
// With a scale per 1x128 the whole dW is made at once.
void accumulate_dw(const Context& ctx, const MainGrad& grad, const Operand& a, const Operand& b,
                   Accumulation accumulation);
// main += column sums of dy [T, out], for a bias (grad is [1, out]).
void accumulate_db(const Context& ctx, const MainGrad& grad, const Tensor& dy);
// On a GPU: the same of `slices` [n, cols] fp32, sums over a slice of the tokens each.
void accumulate_slices(const Context& ctx, const MainGrad& grad, const Tensor& slices);

}  // namespace agoq::ops
