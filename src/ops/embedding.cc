#include "ops/embedding.h"

#include "ops/cpu.h"
#include "ops/embedding_cpu.h"

namespace agoq::ops {
namespace {

void check_tokens(const Tensor& tokens, const char* op) {
  require(tokens.shape.rank() == 1 && tokens.dtype == DType::I32, "{}: tokens are {} {}, expected int32 [T]", op,
          name_of(tokens.dtype), tokens.shape.text());
}

}  // namespace

Tensor embedding(const Context& ctx, const Tensor& tokens, const Weight& w) {
  check_tokens(tokens, "embedding");
  require(w.value.shape.rank() == 2, "embedding: the weight is {}, expected [V, H]", w.value.shape.text());
  Tensor out = ctx.empty({tokens.shape[0], w.value.cols()});
  if (ctx.meta()) return out;
  cpu::require_cpu(ctx, "embedding");
  Timed timed(ctx.profile, Work::Elementwise);
  cpu::embedding(tokens, w, out);
  return out;
}

void embedding_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, const MainGrad& grad) {
  check_tokens(tokens, "embedding_backward");
  const int64_t count = tokens.shape[0], cols = grad.data.row.cols;
  require(grad.data.kept(), "embedding_backward: the main gradient has codec none");
  require(dx.shape == Shape{count, cols} && (dx.dtype == DType::F32 || dx.dtype == DType::BF16),
          "embedding_backward: dx is {} {}, expected fp32 or bf16 [{}, {}]", name_of(dx.dtype), dx.shape.text(), count,
          cols);
  Scope scope(ctx);
  const cpu::EmbeddingBackwardRoom room{cpu::scratch(ctx, DType::I64, {count}),
                                        cpu::scratch(ctx, DType::I32, {count + 1}), cpu::thread_scratch(ctx, 2 * cols)};
  if (ctx.meta()) return;
  cpu::require_cpu(ctx, "embedding_backward");
  Timed timed(ctx.profile, Work::Elementwise);
  cpu::embedding_backward(ctx, tokens, dx, grad, room);
}

}  // namespace agoq::ops
