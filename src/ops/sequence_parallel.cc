#include "ops/sequence_parallel.h"

#include "codec/codec.h"
#include "comm/process_group.h"
#include "comm/sum.h"
#include "ops/linear/fp8.h"

namespace agoq::ops {
namespace {

// A tensor of all tokens like x, which has one rank's.
Tensor empty_for_all(const Context& ctx, const Tensor& x) {
  const int64_t rows = x.shape[0] * tensor_ranks(ctx);
  return ctx.empty(x.dtype, x.shape.rank() == 1 ? Shape{rows} : Shape{rows, x.cols()});
}

// Own tokens of the sum over ranks of what product() makes of all: [tokens / ranks, cols].
template <class Product>
Tensor scattered_product(const Context& ctx, int64_t tokens, int64_t cols, Product&& product) {
  const Tensor own = ctx.empty({own_tokens(tokens, tensor_ranks(ctx)), cols});
  Scope scope(ctx);
  reduce_scatter_tokens_into(ctx, product(), own);
  return own;
}

}  // namespace

int64_t own_tokens(int64_t tokens, int ranks) {
  require(tokens % ranks == 0,
          "a micro-batch of {} tokens cannot be divided over {} tensor-parallel ranks; choose a micro-batch size and a "
          "sequence length whose product is a multiple of {}",
          tokens, ranks, ranks);
  return tokens / ranks;
}

int tensor_ranks(const Context& ctx) {
  return ctx.tensor ? ctx.tensor->size() : 1;
}

Tensor all_gather_tokens(const Context& ctx, const Tensor& x) {
  if (alone(ctx)) return x;
  const Tensor all = empty_for_all(ctx, x);
  ctx.tensor->all_gather(ctx, x, all);
  return all;
}

codec::Quantized all_gather_tokens(const Context& ctx, const codec::Quantized& x) {
  if (alone(ctx)) return x;
  const codec::Quantized all = codec::push(ctx, x.codec, x.rows * tensor_ranks(ctx), x.row);
  ctx.tensor->all_gather(ctx, x.codes, all.codes);
  if (x.scales) ctx.tensor->all_gather(ctx, x.scales, all.scales);
  return all;
}

Operand all_gather_tokens(const Context& ctx, const Operand& x) {
  if (alone(ctx)) return x;
  if (!is_fp8(x.dtype())) return all_gather_tokens(ctx, x.data);
  require(x.granularity == Granularity::Row, "tokens of an operand with a scale per {} are not gathered",
          name_of(x.granularity));
  Operand all{empty_for_all(ctx, x.data), empty_for_all(ctx, x.scale), x.granularity};
  if (x.max_scale) all.max_scale = ctx.empty(DType::F32, {1});
  ctx.tensor->all_gather(ctx, x.data, all.data);
  ctx.tensor->all_gather(ctx, x.scale, all.scale);
  if (x.max_scale) largest_scale(ctx, all.scale, all.max_scale);
  return all;
}

Tensor reduce_scatter_tokens(const Context& ctx, const Tensor& partial_sum) {
  if (alone(ctx)) return partial_sum;
  const Tensor own =
      ctx.empty(partial_sum.dtype, {own_tokens(partial_sum.shape[0], tensor_ranks(ctx)), partial_sum.cols()});
  reduce_scatter_tokens_into(ctx, partial_sum, own);
  return own;
}

void reduce_scatter_tokens_into(const Context& ctx, const Tensor& partial_sum, const Tensor& own) {
  require(!alone(ctx), "there is nobody to scatter tokens to");
  ctx.tensor->reduce_scatter_sum(ctx, partial_sum, own);
}

Tensor row_of_token(const Context& ctx, const Tensor& x, int64_t token) {
  const int64_t own = x.shape[0], row = token % own, rank = token / own;
  const Tensor rows = all_gather_tokens(ctx, x.row_range(row, row + 1));  // of every rank, which is little
  return rows.row_range(rank, rank + 1);
}

Tensor row_parallel_linear(const Context& ctx, const Operand& x, const LinearWeight& w) {
  if (alone(ctx)) return linear(ctx, x, w);
  return scattered_product(ctx, x.rows(), w.w.rows(), [&] { return linear(ctx, x, w); });
}

void row_parallel_linear_add(const Context& ctx, const Operand& x, const LinearWeight& w, const Tensor& y) {
  if (alone(ctx)) return linear_add(ctx, x, w, y);
  Scope scope(ctx);
  comm::add(ctx, row_parallel_linear(ctx, x, w), y);
}

Tensor linear_dx_scattered(const Context& ctx, const Operand& dy, const LinearWeight& w) {
  if (alone(ctx)) return linear_dx(ctx, dy, w);
  return scattered_product(ctx, dy.rows(), w.w.k(), [&] { return linear_dx(ctx, dy, w); });
}

}  // namespace agoq::ops
