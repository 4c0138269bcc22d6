// SwiGLU (Shazeer 2020): h = silu(gate) ∘ up, with gate | up side by side.
#pragma once

#include "codec/codec.h"
#include "ops/linear/fp8.h"

namespace agoq::ops {

// gate_up [T, 2F] -> h [T, F]. Encodes gate_up and h where they are kept.
Tensor swiglu(const Context& ctx, const Tensor& gate_up, const codec::Quantized& keep_gate_up = {},
              const codec::Quantized& keep_h = {});

// The same into a given h: numbers, or 8-bit floats with a scale per row (ops/linear/fp8.h: forward_input), which are
// those of the numbers in the compute type.
void swiglu_into(const Context& ctx, const Tensor& gate_up, const codec::Quantized& keep_gate_up,
                 const codec::Quantized& keep_h, const Operand& h);

struct SwigluGradients {
  Tensor d_gate_up;  // [T, 2F]
  Tensor h;  // [T, F]: the input of the down projection, decoded if it was kept, otherwise made again from gate_up
};
SwigluGradients swiglu_backward(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                                const codec::Quantized& kept_h = {});

// The same as products read them: d_gate_up [T, 2F] as gradient_input() has it, and hᵀ [F, T] for dW. In 8-bit floats h
// is rounded by rows and turned, so that what is subnormal under the scale of all is rounded twice; an h that was kept
// stays numbers.
struct SwigluOperands {
  Operand d_gate_up, ht;
};
SwigluOperands swiglu_backward_operands(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                                        const codec::Quantized& kept_h = {});

}  // namespace agoq::ops
