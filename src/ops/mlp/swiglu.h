// SwiGLU (Shazeer 2020): h = silu(gate) ∘ up, with gate | up side by side.
#pragma once

#include "codec/codec.h"

namespace agoq::ops {

// gate_up [T, 2F] -> h [T, F]. Encodes gate_up and h where they are kept.
Tensor swiglu(const Context& ctx, const Tensor& gate_up, const codec::Quantized& keep_gate_up = {},
              const codec::Quantized& keep_h = {});

struct SwigluGradients {
  Tensor d_gate_up;  // [T, 2F]
  Tensor h;  // [T, F]: the input of the down projection, decoded if it was kept, otherwise made again from gate_up
};
SwigluGradients swiglu_backward(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                                const codec::Quantized& kept_h = {});

}  // namespace agoq::ops
