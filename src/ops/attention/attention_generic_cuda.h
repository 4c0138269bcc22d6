// Attention on a GPU for every type, head dimension up to 256 and mask: exact in fp32, deterministic, and far from the
// speed of cuDNN's. Documents must be runs of tokens, so that document_start never decreases.
#pragma once

#include "ops/attention/attention_cuda.h"

namespace agoq::ops::cuda {

// Where the lse of a head and token lies: [T / length, Hq, length] in general, since whoever makes it has his own
// order.
struct LseOrder {
  int64_t length = 0;        // tokens of a sequence
  int64_t per_sequence = 0;  // numbers from one sequence to the next
  int64_t per_head = 0, per_token = 0;
  static LseOrder heads_first(int64_t heads, int64_t length) { return {length, heads * length, length, 1}; }
  static LseOrder tokens_first(int64_t heads, int64_t tokens) { return {tokens, heads * tokens, 1, heads}; }
};

void generic_attention(const Context& ctx, const Tensor& qkv, const AttentionSpec& spec, const Tensor& o,
                       const Tensor& lse);
// `delta`: fp32 [Hq, T].
void generic_attention_backward(const Context& ctx, const AttentionGradient& gradient, const AttentionSpec& spec,
                                LseOrder order, float* delta);

}  // namespace agoq::ops::cuda
