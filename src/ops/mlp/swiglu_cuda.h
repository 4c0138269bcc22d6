// CUDA kernels of ops/mlp/swiglu.h. Saved tensors have segments that end between gate and up.
#pragma once

#include "ops/mlp/swiglu.h"

namespace agoq::ops::cuda {

void swiglu(const Context& ctx, const Tensor& gate_up, const codec::Quantized& keep_gate_up,
            const codec::Quantized& keep_h, const Tensor& h);
void swiglu_backward(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                     const codec::Quantized& kept_h, const SwigluGradients& out);

// The same where h is written in 8-bit floats with a scale per row. A CTA holds in shared memory what it writes of a
// row, h, or in backward gate, up and h: at most so many numbers. Rows are even (RowBlocks::even).
constexpr int64_t kMostHeldNumbers = int64_t{100} << 10, kHeldInBackward = 3;
void swiglu_rows(const Context& ctx, const Tensor& gate_up, const codec::Quantized& keep_gate_up, const Operand& h);
void swiglu_backward_rows(const Context& ctx, const Tensor& dh, const codec::Quantized& kept_gate_up,
                          const Operand& d_gate_up, const Operand& h);

}  // namespace agoq::ops::cuda
