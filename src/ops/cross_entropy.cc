#include "ops/cross_entropy.h"

#include <algorithm>

#include "ops/cpu.h"
#include "ops/cross_entropy_cpu.h"
#include "ops/linear.h"

namespace agoq::ops {
namespace {

constexpr int64_t kChunkFloats = 1 << 24;  // logits of a chunk: 64 MiB

// Tokens whose logits exist at a time.
int64_t chunk_tokens(int64_t tokens, int64_t vocabulary) {
  return std::min(tokens, std::clamp<int64_t>(kChunkFloats / vocabulary, 128, 1024));
}

// Rows [begin, end) of a vector.
Tensor part(const Tensor& v, int64_t begin, int64_t end) {
  return v.view({v.count(), 1}).row_range(begin, end).view({end - begin});
}
Targets part(const Targets& t, int64_t begin, int64_t end) {
  return {part(t.tokens, begin, end), part(t.weights, begin, end)};
}

void check(const Context& ctx, const Tensor& n, const Tensor& w, const Targets& targets, const Tensor& nll,
           const char* op) {
  require(n.shape.rank() == 2 && w.shape.rank() == 2 && n.cols() == w.cols() && n.dtype == ctx.compute() &&
              w.dtype == ctx.compute(),
          "{}: n is {} {} and w {} {}, expected {} [T, H] and [V, H]", op, name_of(n.dtype), n.shape.text(),
          name_of(w.dtype), w.shape.text(), name_of(ctx.compute()));
  const Shape tokens = {n.shape[0]};
  require(targets.tokens.shape == tokens && targets.tokens.dtype == DType::I32 && targets.weights.shape == tokens &&
              targets.weights.dtype == DType::F32 && nll.shape == tokens && nll.dtype == DType::F32,
          "{}: for {} tokens, target tokens are {} {}, weights {} {}, nll {} {}; expected int32, fp32 and fp32 {}", op,
          n.shape[0], name_of(targets.tokens.dtype), targets.tokens.shape.text(), name_of(targets.weights.dtype),
          targets.weights.shape.text(), name_of(nll.dtype), nll.shape.text(), tokens.text());
}

}  // namespace

void head_loss(const Context& ctx, const Tensor& n, const Tensor& w, const Targets& targets, const Tensor& nll) {
  check(ctx, n, w, targets, nll, "head_loss");
  const int64_t tokens = n.shape[0], vocabulary = w.shape[0], chunk = chunk_tokens(tokens, vocabulary);
  Scope scope(ctx);
  const Tensor buffer = ctx.empty(DType::F32, {chunk, vocabulary});
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t end = std::min(begin + chunk, tokens);
    const Tensor logits = buffer.row_range(0, end - begin);
    gemm(ctx, n.row_range(begin, end), Transpose::No, w, Transpose::Yes, logits);
    if (ctx.meta()) continue;
    cpu::require_cpu(ctx, "head_loss");
    Timed timed(ctx.profile, Work::Elementwise);
    cpu::cross_entropy(logits, part(targets, begin, end), part(nll, begin, end));
  }
}

Tensor head_loss_backward(const Context& ctx, const Tensor& n, const Tensor& w, const Targets& targets, float scale,
                          const Tensor& nll, const MainGrad& dw) {
  check(ctx, n, w, targets, nll, "head_loss_backward");
  const int64_t tokens = n.shape[0], vocabulary = w.shape[0], chunk = chunk_tokens(tokens, vocabulary);
  require(dw.data.rows == vocabulary && dw.data.row.cols == w.cols(),
          "head_loss_backward: w is {}, but its gradient is [{}, {}]", w.shape.text(), dw.data.rows, dw.data.row.cols);
  Tensor dn = ctx.empty(n.shape);
  if (tokens == 0) return dn;
  Scope scope(ctx);
  // A plain fp32 gradient is the sum itself.
  const bool plain = dw.data.codec == codec::Codec::Fp32;
  const Tensor sum = plain ? dw.data.plain() : ctx.empty(DType::F32, w.shape);
  {
    Scope chunks(ctx);
    const Tensor buffer = ctx.empty(DType::F32, {chunk, vocabulary});
    for (int64_t begin = 0; begin < tokens; begin += chunk) {
      const int64_t end = std::min(begin + chunk, tokens);
      const Tensor n_chunk = n.row_range(begin, end), logits = buffer.row_range(0, end - begin);
      gemm(ctx, n_chunk, Transpose::No, w, Transpose::Yes, logits);
      if (!ctx.meta()) {
        cpu::require_cpu(ctx, "head_loss_backward");
        Timed timed(ctx.profile, Work::Elementwise);
        const bool round = ctx.compute() == DType::BF16;
        cpu::cross_entropy_backward(logits, part(targets, begin, end), scale, round, part(nll, begin, end));
      }
      gemm(ctx, logits, Transpose::No, w, Transpose::No, dn.row_range(begin, end));
      gemm(ctx, logits, Transpose::Yes, n_chunk, Transpose::No, sum, plain || begin > 0 ? 1.0f : 0.0f);
    }
  }
  if (!plain) accumulate(ctx, dw, sum);
  return dn;
}

}  // namespace agoq::ops
