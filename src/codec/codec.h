// Encode and decode whole tensors, and single rows for fused CPU ops.
//
// Errors bounds, bit layouts and the arithmetic that CPU and GPU share: codec/formats.h and docs/formats.md.
#pragma once

#include "codec/quantized.h"
#include "device/context.h"

namespace agoq::codec {

// A quantized tensor owned by the arena (saved activations, gradients, moments), zeroed: all codes 0, all scales 0.
Quantized allocate(Arena& arena, Owner owner, Codec codec, int64_t rows, RowBlocks row);
// The same as a temporary on the stack, uninitialised.
Quantized push(const Context& ctx, Codec codec, int64_t rows, RowBlocks row);

// The same in the front of given bytes (uint8, aligned as the arena aligns), of which it takes so many.
Quantized view_in(const Tensor& bytes, Codec codec, int64_t rows, RowBlocks row);
int64_t bytes_in_view(Codec codec, int64_t rows, RowBlocks row);

// x [rows, cols] (fp32 or bf16) -> codes and scales. A NaN or Inf makes its block's scale NaN.
void encode(const Context& ctx, const Tensor& x, const Quantized& out, const Rounding& rounding = Rounding::nearest());
// Codes -> out [rows, cols] (fp32 or bf16).
void decode(const Context& ctx, const Quantized& in, const Tensor& out);
// Sets every element to zero.
void zero(const Context& ctx, const Quantized& q);

// One row on the CPU; `x` has q.row.cols numbers.
void encode_row(const Quantized& q, int64_t row, const float* x, const Rounding& rounding);
void decode_row(const Quantized& q, int64_t row, float* x);
// One block on the CPU; `x` has q.row.size(block) numbers (at most 128). Decoded numbers are code · (scale · factor).
void encode_block(const Quantized& q, int64_t row, int64_t block, const float* x, const Rounding& rounding);
void decode_block(const Quantized& q, int64_t row, int64_t block, float* x, float factor = 1);

}  // namespace agoq::codec
