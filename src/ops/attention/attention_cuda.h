// The GPU side of attention.h: no checks; memory is there. bf16 by cuDNN where it can and the documents are known, else
// by generic kernels, which follow document_start as the CPU does.
#pragma once

#include "ops/attention/attention.h"

namespace agoq::ops::cuda {

// lse may be none. `workspace`: attention_workspace bytes (attention_runs.h).
void attention(const Context& ctx, const Tensor& qkv, const AttentionSpec& spec, const Tensor& o, const Tensor& lse,
               const Tensor& workspace);

struct AttentionGradient {
  Tensor d_o, qkv, o, lse;
  Tensor dqkv;  // the result
};
// `workspace`: attention_backward_workspace bytes.
void attention_backward(const Context& ctx, const AttentionGradient& gradient, const AttentionSpec& spec,
                        const Tensor& workspace);

// What cuDNN has done on this GPU, so that a test can tell who computed.
struct AttentionUse {
  int64_t plans = 0, calls = 0;
};
AttentionUse attention_use(Gpu& gpu);

}  // namespace agoq::ops::cuda
