#include "ops/head/cross_entropy.h"

#include <algorithm>
#include <optional>

#include "comm/process_group.h"
#include "ops/cpu.h"
#include "ops/head/cross_entropy_cpu.h"
#include "ops/head/cross_entropy_cuda.h"
#include "ops/head/row_sums.h"
#include "ops/linear/linear.h"
#include "ops/sequence_parallel.h"

namespace agoq::ops {
namespace {

constexpr int64_t kChunkFloats = 1 << 24;     // logits of a chunk on the CPU: 64 MiB
constexpr int64_t kGpuChunkFloats = 1 << 27;  // on a GPU: 512 MiB
constexpr int64_t kGpuTile = 128;             // tokens that its matrix products like to have

// Gradients of the logits, in the compute type, that exist at a time on a GPU: of all tokens, so that dW is one product
// and goes straight into the main gradient, if that takes no more than the first; otherwise the second.
constexpr int64_t kWholeBytes = int64_t{9} << 28;          // 2.25 GiB
constexpr int64_t kGroupBytes = (int64_t{11} << 30) / 10;  // 1.1 GiB

// Rows of w on the rank that has most: all ranks must cut the tokens into the same chunks.
int64_t largest_part(const Context& ctx, const Tensor& w, const Targets& targets) {
  const int64_t ranks = tensor_ranks(ctx);
  return ranks == 1 ? w.shape[0] : (targets.vocabulary + ranks - 1) / ranks;
}

// Tokens whose logits exist at a time.
int64_t chunk_tokens(const Context& ctx, int64_t tokens, int64_t vocabulary) {
  if (ctx.target() == Device::Cuda)
    return std::min(tokens, std::max(kGpuChunkFloats / vocabulary / kGpuTile, int64_t{1}) * kGpuTile);
  return std::min(tokens, std::clamp<int64_t>(kChunkFloats / vocabulary, 128, 1024));
}

// Tokens whose gradients of the logits exist at a time on a GPU: whole chunks.
int64_t group_tokens(const Context& ctx, int64_t tokens, int64_t vocabulary, int64_t chunk) {
  const int64_t bytes_per_token = vocabulary * static_cast<int64_t>(size_of(ctx.compute()));
  if (tokens * bytes_per_token <= kWholeBytes) return tokens;
  return std::min(tokens, std::max(kGroupBytes / bytes_per_token / chunk, int64_t{1}) * chunk);
}

// Rows [begin, end) of a vector.
Tensor part(const Tensor& v, int64_t begin, int64_t end) {
  return v.view({v.count(), 1}).row_range(begin, end).view({end - begin});
}
Targets part(const Targets& t, int64_t begin, int64_t end) {
  return {part(t.tokens, begin, end), part(t.weights, begin, end), t.first, t.vocabulary};
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
  const int64_t end = targets.first + w.shape[0];
  require(alone(ctx) || (end <= targets.vocabulary && w.shape[0] <= largest_part(ctx, w, targets)),
          "{}: rows {} to {} of a head of {} are not a part of it for one of {} ranks", op, targets.first, end,
          targets.vocabulary, tensor_ranks(ctx));
}

// body(begin, end) for pieces of `step` of [begin, end).
template <class Body>
void in_pieces(int64_t begin, int64_t end, int64_t step, Body&& body) {
  for (; begin < end; begin += step) body(begin, std::min(begin + step, end));
}

// What the ranks of the tensor group know of rows of the logits, for all of them: [ranks, n, kRowSums].
Tensor empty_sums(const Context& ctx, int64_t rows) {
  return ctx.empty(DType::F32, {tensor_ranks(ctx), rows, kRowSums});
}
Tensor own_part(const Context& ctx, const Tensor& sums) {
  const int64_t ranks = sums.shape[0], rows = sums.shape[1], rank = ctx.tensor->rank();
  return sums.view({ranks, rows * kRowSums}).row_range(rank, rank + 1).view({rows, kRowSums});
}

// This rank's. On the CPU the logits become exponentials if asked.
void sum_exponentials(const Context& ctx, const Tensor& logits, const Targets& targets, bool exponentiate,
                      const Tensor& sums) {
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::sum_exponentials(ctx, logits, targets, sums);
  cpu::require_cpu(ctx, "head_loss");
  cpu::sum_exponentials(logits, targets, exponentiate, sums);
}

// All ranks'.
Tensor gather_sums(const Context& ctx, const Tensor& logits, const Targets& targets, bool exponentiate) {
  const Tensor all = empty_sums(ctx, logits.shape[0]), own = own_part(ctx, all);
  sum_exponentials(ctx, logits, targets, exponentiate, own);
  ctx.tensor->all_gather(ctx, own, all);
  return all;
}

void loss_of_sums(const Context& ctx, const Tensor& sums, const Targets& targets, const Tensor& nll) {
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::cross_entropy_of_sums(ctx, sums, targets, nll);
  cpu::cross_entropy_of_sums(sums, targets, nll);
}

// Of whole rows.
void loss(const Context& ctx, const Tensor& logits, const Targets& targets, const Tensor& nll) {
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::cross_entropy(ctx, logits, targets, nll);
  cpu::require_cpu(ctx, "head_loss");
  cpu::cross_entropy(logits, targets, nll);
}

// On the CPU: logits become their gradient in place.
void loss_gradient(const Context& ctx, const Tensor& logits, const Targets& targets, float scale, const Tensor& nll) {
  const bool round = ctx.compute() == DType::BF16;
  if (!alone(ctx)) {
    Scope scope(ctx);
    const Tensor sums = gather_sums(ctx, logits, targets, true);
    if (ctx.meta()) return;
    Timed timed(ctx.profile, Work::Elementwise);
    cpu::cross_entropy_of_sums(sums, targets, nll);
    return cpu::cross_entropy_gradient(sums, ctx.tensor->rank(), targets, scale, round, logits);
  }
  if (ctx.meta()) return;
  cpu::require_cpu(ctx, "head_loss_backward");
  Timed timed(ctx.profile, Work::Elementwise);
  cpu::cross_entropy_backward(logits, targets, scale, round, nll);
}

struct HeadGradient {
  const Tensor &n, &w;
  const Targets& targets;
  float scale;
  const Tensor &nll, &dn;
  const MainGrad& dw;
};

// dW summed over pieces in fp32, and encoded once. A plain fp32 gradient is the sum itself.
class SumOverPieces {
 public:
  SumOverPieces(const Context& ctx, const MainGrad& dw)
      : plain_(dw.data.codec == codec::Codec::Fp32),
        empty_(!plain_ || dw.fresh),
        sum_(plain_ ? dw.data.plain() : ctx.empty(DType::F32, {dw.data.rows, dw.data.row.cols})) {}
  void add(const Context& ctx, const Tensor& dlogits, const Tensor& n) {
    gemm(ctx, transposed(dlogits), transposed(n), sum_, empty_ ? 0.0f : 1.0f);
    empty_ = false;
  }
  void fold_into(const Context& ctx, const MainGrad& dw) const {
    if (!plain_) accumulate(ctx, dw, sum_);
  }

 private:
  bool plain_, empty_;
  Tensor sum_;
};

// On the CPU, chunk by chunk: the logits become their gradient in place.
void backward_by_chunks(const Context& ctx, const HeadGradient& g, int64_t chunk) {
  SumOverPieces sum(ctx, g.dw);
  {
    Scope chunks(ctx);
    const Tensor buffer = ctx.empty(DType::F32, {chunk, g.w.shape[0]});
    in_pieces(0, g.n.shape[0], chunk, [&](int64_t begin, int64_t end) {
      const Tensor n = g.n.row_range(begin, end), logits = buffer.row_range(0, end - begin);
      gemm(ctx, n, g.w, logits);
      loss_gradient(ctx, logits, part(g.targets, begin, end), g.scale, part(g.nll, begin, end));
      gemm(ctx, logits, transposed(g.w), g.dn.row_range(begin, end));
      sum.add(ctx, logits, n);
    });
  }
  sum.fold_into(ctx, g.dw);
}

// On a GPU: dlogits in the compute type.
void loss_gradient_into(const Context& ctx, const Tensor& logits, const Targets& targets, float scale,
                        const Tensor& nll, const Tensor& dlogits) {
  Scope scope(ctx);
  const Tensor sums = alone(ctx) ? Tensor{} : gather_sums(ctx, logits, targets, false);
  if constexpr (kCudaBuild) {
    if (!ctx.cuda()) return;
    if (!sums) return cuda::cross_entropy_backward(ctx, logits, targets, scale, nll, dlogits);
    cuda::cross_entropy_of_sums(ctx, sums, targets, nll);
    cuda::cross_entropy_gradient(ctx, sums, logits, targets, scale, dlogits);
  }
}

// Rows [begin, end) of the gradient of the logits, chunk by chunk.
void group_dlogits(const Context& ctx, const HeadGradient& g, int64_t begin, int64_t end, int64_t chunk,
                   const Tensor& dlogits) {
  Scope scope(ctx);
  const Tensor buffer = ctx.empty(DType::F32, {std::min(chunk, end - begin), g.w.shape[0]});
  in_pieces(begin, end, chunk, [&](int64_t first, int64_t last) {
    const Tensor logits = buffer.row_range(0, last - first);
    gemm(ctx, g.n.row_range(first, last), g.w, logits);
    loss_gradient_into(ctx, logits, part(g.targets, first, last), g.scale, part(g.nll, first, last),
                       dlogits.row_range(first - begin, last - begin));
  });
}

// On a GPU, where large products and few of them are fast.
void backward_by_groups(const Context& ctx, const HeadGradient& g, int64_t chunk, int64_t group) {
  const int64_t tokens = g.n.shape[0];
  std::optional<SumOverPieces> sum;
  if (group < tokens) sum.emplace(ctx, g.dw);
  {
    Scope groups(ctx);
    const Tensor buffer = ctx.empty({group, g.w.shape[0]});
    in_pieces(0, tokens, group, [&](int64_t begin, int64_t end) {
      const Tensor n = g.n.row_range(begin, end), dlogits = buffer.row_range(0, end - begin);
      group_dlogits(ctx, g, begin, end, chunk, dlogits);
      gemm(ctx, dlogits, transposed(g.w), g.dn.row_range(begin, end));
      if (sum)
        sum->add(ctx, dlogits, n);
      else
        accumulate_dw(ctx, g.dw, dlogits, n);
    });
  }
  if (sum) sum->fold_into(ctx, g.dw);
}

}  // namespace

void head_loss(const Context& ctx, const Tensor& n, const Tensor& w, const Targets& targets, const Tensor& nll) {
  check(ctx, n, w, targets, nll, "head_loss");
  const int64_t tokens = n.shape[0], chunk = chunk_tokens(ctx, tokens, largest_part(ctx, w, targets));
  if (tokens == 0) return;
  const ProfilerRange range("head_loss");
  Scope scope(ctx);
  const Tensor sums = alone(ctx) ? Tensor{} : empty_sums(ctx, tokens), own = sums ? own_part(ctx, sums) : Tensor{};
  const Tensor buffer = ctx.empty(DType::F32, {chunk, w.shape[0]});
  in_pieces(0, tokens, chunk, [&](int64_t begin, int64_t end) {
    const Tensor logits = buffer.row_range(0, end - begin);
    gemm(ctx, n.row_range(begin, end), w, logits);
    if (sums)
      sum_exponentials(ctx, logits, part(targets, begin, end), false, own.row_range(begin, end));
    else
      loss(ctx, logits, part(targets, begin, end), part(nll, begin, end));
  });
  if (!sums) return;
  ctx.tensor->all_gather(ctx, own, sums);
  loss_of_sums(ctx, sums, targets, nll);
}

Tensor head_loss_backward(const Context& ctx, const Tensor& n, const Tensor& w, const Targets& targets, float scale,
                          const Tensor& nll, const MainGrad& dw) {
  check(ctx, n, w, targets, nll, "head_loss_backward");
  const int64_t tokens = n.shape[0], vocabulary = w.shape[0];
  require(dw.data.rows == vocabulary && dw.data.row.cols == w.cols(),
          "head_loss_backward: w is {}, but its gradient is [{}, {}]", w.shape.text(), dw.data.rows, dw.data.row.cols);
  Tensor dn = ctx.empty(n.shape);
  if (tokens == 0) {
    zero_if_fresh(ctx, dw);
    return dn;
  }
  const ProfilerRange range("head_loss_backward");
  Scope scope(ctx);
  const HeadGradient gradient{n, w, targets, scale, nll, dn, dw};
  const int64_t most = largest_part(ctx, w, targets), chunk = chunk_tokens(ctx, tokens, most);
  if (ctx.target() == Device::Cuda)
    backward_by_groups(ctx, gradient, chunk, group_tokens(ctx, tokens, most, chunk));
  else
    backward_by_chunks(ctx, gradient, chunk);
  return dn;
}

}  // namespace agoq::ops
