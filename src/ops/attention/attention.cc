#include "ops/attention/attention.h"

#include <cmath>

#include "ops/attention/attention_cpu.h"
#include "ops/attention/attention_cuda.h"
#include "ops/attention/attention_runs.h"
#include "ops/cpu.h"

namespace agoq::ops {
namespace {

// Checks what forward and backward read; returns T.
int64_t check(const Context& ctx, const Tensor& qkv, const Tensor& lse, const AttentionSpec& spec, const char* op) {
  const Heads& heads = spec.heads;
  require(heads.query > 0 && heads.kv > 0 && heads.dim > 0 && heads.query % heads.kv == 0,
          "{}: {} query heads must be a multiple of {} key/value heads, of dimension {} > 0", op, heads.query, heads.kv,
          heads.dim);
  require(spec.window >= 0, "{}: a sliding window has a length, not {}; 0 means none", op, spec.window);
  require(qkv.shape.rank() == 2 && qkv.cols() == heads.cols(), "{}: qkv is {}, expected [T, {}]", op, qkv.shape.text(),
          heads.cols());
  require(qkv.dtype == ctx.compute(), "{}: qkv is {}, the compute type is {}", op, name_of(qkv.dtype),
          name_of(ctx.compute()));
  const int64_t tokens = qkv.shape[0];
  require(!lse || (lse.shape == Shape{heads.query, tokens} && lse.dtype == DType::F32),
          "{}: lse is {} {}, expected fp32 [{}, {}]", op, name_of(lse.dtype), lse.shape.text(), heads.query, tokens);
  require(ctx.document_start.shape == Shape{tokens} && ctx.document_start.dtype == DType::I32,
          "{}: document_start is {} {}, expected int32 [{}]", op, name_of(ctx.document_start.dtype),
          ctx.document_start.shape.text(), tokens);
  return tokens;
}

}  // namespace

float AttentionSpec::scale() const {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(heads.dim)));
}

Tensor attention(const Context& ctx, const Tensor& qkv, const AttentionSpec& spec, const Tensor& lse) {
  const Tensor o = ctx.empty({qkv.shape[0], spec.heads.q_cols()});
  attention_into(ctx, qkv, spec, o, lse);
  return o;
}

void attention_into(const Context& ctx, const Tensor& qkv, const AttentionSpec& spec, const Tensor& o,
                    const Tensor& lse) {
  const int64_t tokens = check(ctx, qkv, lse, spec, "attention");
  require(o.shape == Shape{tokens, spec.heads.q_cols()} && o.dtype == ctx.compute(),
          "attention: o is {} {}, expected {} [{}, {}]", name_of(o.dtype), o.shape.text(), name_of(ctx.compute()),
          tokens, spec.heads.q_cols());
  Scope scope(ctx);
  const Tensor scratch = cpu::thread_scratch(ctx, cpu::attention_floats(spec.heads));
  const Tensor workspace = ctx.scratch(Device::Cuda, DType::U8, {attention_workspace(ctx, spec.heads, tokens)});
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Attention);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::attention(ctx, qkv, spec, o, lse, workspace);
  cpu::require_cpu(ctx, "attention");
  cpu::attention(ctx, qkv, spec, o, lse, scratch);
}

Tensor attention_backward(const Context& ctx, const Tensor& d_o, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                          const AttentionSpec& spec) {
  require(static_cast<bool>(lse), "attention_backward: needs the lse that forward kept");
  const int64_t tokens = check(ctx, qkv, lse, spec, "attention_backward");
  const Heads& heads = spec.heads;
  for (const Tensor* t : {&d_o, &o})
    require(t->shape == Shape{tokens, heads.q_cols()} && t->dtype == ctx.compute(),
            "attention_backward: {} is {} {}, expected {} [{}, {}]", t == &o ? "o" : "d_o", name_of(t->dtype),
            t->shape.text(), name_of(ctx.compute()), tokens, heads.q_cols());
  Tensor dqkv = ctx.empty({tokens, heads.cols()});
  Scope scope(ctx);
  const Shape sums = {heads.kv * tokens, cpu::attention_padded_dim(heads)};
  const cpu::AttentionBackwardScratch scratch{cpu::thread_scratch(ctx, cpu::attention_backward_floats(heads)),
                                              cpu::scratch(ctx, DType::F32, sums), cpu::scratch(ctx, DType::F32, sums),
                                              cpu::scratch(ctx, DType::I32, {tokens + 1})};
  const Tensor workspace = ctx.scratch(Device::Cuda, DType::U8, {attention_backward_workspace(ctx, heads, tokens)});
  if (ctx.meta()) return dqkv;
  Timed timed(ctx.profile, Work::Attention);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) {
      cuda::attention_backward(ctx, {d_o, qkv, o, lse, dqkv}, spec, workspace);
      return dqkv;
    }
  cpu::require_cpu(ctx, "attention_backward");
  cpu::attention_backward(ctx, d_o, qkv, o, lse, spec, dqkv, scratch);
  return dqkv;
}

}  // namespace agoq::ops
