// The CPU side of codec.h: no checks, memory is there.
#pragma once

#include "codec/quantized.h"

namespace agoq::codec {

// x, out: [rows, cols], fp32 or bf16.
void encode_cpu(const Tensor& x, const Quantized& out, const Rounding& rounding);
void decode_cpu(const Quantized& in, const Tensor& out);

// Blocks [begin, end) of one row; `x` is the first of their numbers.
template <class Number>
void encode_blocks_cpu(const Quantized& q, int64_t row, int64_t begin, int64_t end, const Number* x,
                       const Rounding& rounding);
template <class Number>
void decode_blocks_cpu(const Quantized& q, int64_t row, int64_t begin, int64_t end, Number* x, float factor = 1);

}  // namespace agoq::codec
