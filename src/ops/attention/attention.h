// Causal grouped-query attention in tiles with a running softmax (FlashAttention, Dao et al. 2022): memory linear in T.
// Token t attends to tokens max(document_start[t], t - window + 1) .. t of its micro-batch; sequences of a micro-batch
// and packed documents are kept apart by ctx.document_start alone. K and V are never expanded to all query heads.
#pragma once

#include "device/context.h"
#include "ops/heads.h"

namespace agoq::ops {

struct AttentionSpec {
  Heads heads;
  int64_t window = 0;   // sliding window (Mistral); 0: none
  float scale() const;  // 1/sqrt(D)
};

// qkv [T, (Hq + 2 Hkv) D] -> o [T, Hq D]. lse [Hq, T] fp32 (log of the softmax sum) is written if given; on a GPU its
// order depends on the documents of the batch, so it is for attention_backward of the same batch alone.
Tensor attention(const Context& ctx, const Tensor& qkv, const AttentionSpec& spec, const Tensor& lse = {});
// The same into a given o.
void attention_into(const Context& ctx, const Tensor& qkv, const AttentionSpec& spec, const Tensor& o,
                    const Tensor& lse = {});
// -> dqkv, from what forward kept. Deterministic on the CPU; on a GPU if ctx.deterministic.
Tensor attention_backward(const Context& ctx, const Tensor& d_o, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                          const AttentionSpec& spec);

}  // namespace agoq::ops
