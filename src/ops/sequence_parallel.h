// What the ranks of the tensor group send each other (Megatron-LM's tensor and sequence parallelism, Korthikanti et al.
// 2022): each holds the residual stream of its part of the tokens, [T / ranks, H], and all need all tokens for their
// part of a product.
//
// A group of one, or none, moves nothing and takes no memory. Sums are in rank order, in fp32.
#pragma once

#include "codec/quantized.h"
#include "device/context.h"
#include "ops/linear/linear.h"

namespace agoq::ops {

// Of T tokens, those of one rank. An error if they cannot be divided.
int64_t own_tokens(int64_t tokens, int ranks);

int tensor_ranks(const Context& ctx);
inline bool alone(const Context& ctx) {
  return tensor_ranks(ctx) == 1;
}

// x [T / ranks, ...] of every rank -> [T, ...]. Alone: x itself.
Tensor all_gather_tokens(const Context& ctx, const Tensor& x);
// The same of what is kept: its codes and scales travel.
codec::Quantized all_gather_tokens(const Context& ctx, const codec::Quantized& x);
// The same of an operand: numbers, or 8-bit floats by rows, of which codes and scales travel, half the bytes.
Operand all_gather_tokens(const Context& ctx, const Operand& x);
// Σ over ranks of their partial sums [T, H] -> own tokens of it, [T / ranks, H]. Alone: the partial sum itself.
Tensor reduce_scatter_tokens(const Context& ctx, const Tensor& partial_sum);
// The same into a given tensor.
void reduce_scatter_tokens_into(const Context& ctx, const Tensor& partial_sum, const Tensor& own);
// Row `token` of the T that all ranks' x [T / ranks, H] are together, on every rank: [1, H].
Tensor row_of_token(const Context& ctx, const Tensor& x, int64_t token);

// Products with a weight that is cut by its inner dimension, so that each rank has a partial sum of every token's
// result. x [T, in / ranks], w [out, in / ranks] -> x·wᵀ [T / ranks, out].
Tensor row_parallel_linear(const Context& ctx, const Operand& x, const LinearWeight& w);
// y [T / ranks, out] += x·wᵀ: how a layer adds to the residual stream.
void row_parallel_linear_add(const Context& ctx, const Operand& x, const LinearWeight& w, const Tensor& y);
// dy·w -> [T / ranks, in]; dy [T, out / ranks], w [out / ranks, in].
Tensor linear_dx_scattered(const Context& ctx, const Operand& dy, const LinearWeight& w);

}  // namespace agoq::ops
