// CUDA kernels of ops/mlp/swiglu.h. Saved tensors have segments that end between gate and up.
#pragma once

#include "ops/mlp/swiglu.h"

namespace agoq::ops::cuda {

void swiglu(const Context& ctx, const Tensor& gate_up, const codec::Quantized& keep_gate_up,
            const codec::Quantized& keep_h, const Tensor& h);
void swiglu_backward(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                     const codec::Quantized& kept_h, const SwigluGradients& out);

}  // namespace agoq::ops::cuda
