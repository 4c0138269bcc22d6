#include "ops/head/embedding.h"

#include "ops/cpu.h"
#include "ops/head/embedding_cpu.h"
#include "ops/head/embedding_cuda.h"
#include "ops/linear/weight_cuda.h"
#include "ops/sequence_parallel.h"

namespace agoq::ops {
namespace {

void check_tokens(const Tensor& tokens, const char* op) {
  require(tokens.shape.rank() == 1 && tokens.dtype == DType::I32, "{}: tokens are {} {}, expected int32 [T]", op,
          name_of(tokens.dtype), tokens.shape.text());
}

cuda::EmbeddingBackwardWorkspace gpu_workspace(const Context& ctx, int64_t tokens) {
  const auto ints = [&](int64_t n) { return ctx.scratch(Device::Cuda, DType::I32, {n}); };
  // The sort keeps a second copy of keys and places, and both algorithms some bytes for each of their tiles.
  const int64_t bytes = 16 * tokens + (int64_t{1} << 20);
  return {ints(tokens), ints(tokens), ints(tokens),
          ints(tokens), ints(1),      ctx.scratch(Device::Cuda, DType::U8, {bytes})};
}

// out [T, H]: rows of the tokens from `first` on, zeros for those that w has not.
void look_up(const Context& ctx, const Tensor& tokens, const Weight& w, int64_t first, const Tensor& out) {
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise, "embedding");
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::read_rows(ctx, w, tokens, out, first);
  cpu::require_cpu(ctx, "embedding");
  cpu::embedding(tokens, w, first, out);
}

}  // namespace

Tensor embedding(const Context& ctx, const Tensor& tokens, const Weight& w, int64_t first) {
  check_tokens(tokens, "embedding");
  const Tensor out = ctx.empty({own_tokens(tokens.shape[0], tensor_ranks(ctx)), w.value.cols()});
  embedding_into(ctx, tokens, w, out, first);
  return out;
}

void embedding_into(const Context& ctx, const Tensor& tokens, const Weight& w, const Tensor& out, int64_t first) {
  check_tokens(tokens, "embedding");
  require(w.value.shape.rank() == 2, "embedding: the weight is {}, expected [V, H]", w.value.shape.text());
  const int64_t count = tokens.shape[0], cols = w.value.cols();
  require(out.shape == Shape{own_tokens(count, tensor_ranks(ctx)), cols} && out.dtype == ctx.compute(),
          "embedding: {} tokens of a weight {} do not give {} {}", count, w.value.shape.text(), name_of(out.dtype),
          out.shape.text());
  if (alone(ctx)) return look_up(ctx, tokens, w, first, out);
  Scope scope(ctx);
  const Tensor all = ctx.empty({count, cols});
  look_up(ctx, tokens, w, first, all);
  reduce_scatter_tokens_into(ctx, all, out);
}

void embedding_backward(const Context& ctx, const Tensor& tokens, const Tensor& own_dx, const MainGrad& grad,
                        int64_t first) {
  check_tokens(tokens, "embedding_backward");
  const int64_t count = tokens.shape[0], cols = grad.data.row.cols;
  require(grad.data.kept(), "embedding_backward: the main gradient has codec none");
  require(!grad.fresh, "embedding_backward: it adds to the rows of its tokens only; zero the main gradient first");
  Scope scope(ctx);
  const Tensor dx = all_gather_tokens(ctx, own_dx);
  require(dx.shape == Shape{count, cols} && (dx.dtype == DType::F32 || dx.dtype == DType::BF16),
          "embedding_backward: dx is {} {}, expected fp32 or bf16 [{}, {}]", name_of(dx.dtype), dx.shape.text(), count,
          cols);
  const cpu::EmbeddingBackwardScratch scratch{cpu::scratch(ctx, DType::I64, {count}),
                                              cpu::scratch(ctx, DType::I32, {count + 1}),
                                              cpu::thread_scratch(ctx, 2 * cols)};
  const cuda::EmbeddingBackwardWorkspace workspace = gpu_workspace(ctx, count);
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::embedding_backward(ctx, tokens, dx, grad, first, workspace);
  cpu::require_cpu(ctx, "embedding_backward");
  cpu::embedding_backward(ctx, tokens, dx, grad, first, scratch);
}

}  // namespace agoq::ops
