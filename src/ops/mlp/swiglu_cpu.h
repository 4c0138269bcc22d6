// CPU kernels of ops/mlp/swiglu.h. `workspace` is per-thread scratch (ops/cpu.h).
#pragma once

#include "ops/mlp/swiglu.h"

namespace agoq::ops::cpu {

void swiglu(const Tensor& gate_up, const codec::Quantized& keep_gate_up, const codec::Quantized& keep_h,
            const Tensor& h, const Tensor& workspace);
void swiglu_backward(const Tensor& dh, const codec::Quantized& kept_gate_up, const codec::Quantized& kept_h,
                     const SwigluGradients& out, const Tensor& workspace);

}  // namespace agoq::ops::cpu
