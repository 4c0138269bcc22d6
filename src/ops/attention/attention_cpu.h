// The CPU side of attention.h: no checks; memory is there.
#pragma once

#include "ops/attention/attention.h"

namespace agoq::ops::cpu {

// fp32 numbers that each thread needs.
int64_t attention_floats(const Heads& heads);
int64_t attention_backward_floats(const Heads& heads);
// Columns of the padded fp32 sums of dk and dv.
int64_t attention_padded_dim(const Heads& heads);

// lse may be none. `scratch`: thread_scratch of attention_floats.
void attention(const Context& ctx, const Tensor& qkv, const AttentionSpec& spec, const Tensor& o, const Tensor& lse,
               const Tensor& scratch);

struct AttentionBackwardScratch {
  Tensor threads;  // thread_scratch of attention_backward_floats
  Tensor dk, dv;   // fp32 [Hkv T, padded D]
  Tensor cuts;     // int32 [T + 1]
};
void attention_backward(const Context& ctx, const Tensor& d_o, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                        const AttentionSpec& spec, const Tensor& dqkv, const AttentionBackwardScratch& scratch);

}  // namespace agoq::ops::cpu
