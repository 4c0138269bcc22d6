// The GPU side of codec.h: no checks, memory is there.
#pragma once

#include "codec/quantized.h"
#include "device/context.h"

namespace agoq::codec::cuda {

// x, out: [rows, cols], fp32 or bf16.
void encode(const Context& ctx, const Tensor& x, const Quantized& out, const Rounding& rounding);
void decode(const Context& ctx, const Quantized& in, const Tensor& out);

}  // namespace agoq::codec::cuda
