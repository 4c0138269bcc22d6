#include <cfloat>

#include "device/cuda.h"
#include "ops/attention/attention_generic_cuda.h"

namespace agoq::ops::cuda {
namespace {

// A warp owns some rows (queries, or keys) and walks over tiles of 32 of the others, which its block shares. A lane
// computes the scores of one of the 32; of the sums over them it holds every 32nd column.
constexpr int kWarps = 4;
constexpr int kLanes = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr float kHidden = -INFINITY;

struct Problem {
  const int32_t* document_start;
  int tokens, query_heads, kv_heads, dim;
  int window;
  float scale;
  LseOrder order;
  __device__ int group() const { return query_heads / kv_heads; }
  __device__ int64_t row() const { return static_cast<int64_t>(query_heads + 2 * kv_heads) * dim; }
  __device__ int64_t o_row() const { return static_cast<int64_t>(query_heads) * dim; }
  __device__ int q_column(int head) const { return head * dim; }
  __device__ int k_column(int kv_head) const { return (query_heads + kv_head) * dim; }
  __device__ int v_column(int kv_head) const { return (query_heads + kv_heads + kv_head) * dim; }
  // The first key that token t sees.
  __device__ int first_key(int t) const {
    const int start = document_start[t];
    return window > 0 ? max(start, t - window + 1) : start;
  }
  __device__ int64_t lse_index(int head, int t) const {
    return t / order.length * order.per_sequence + head * order.per_head + t % order.length * order.per_token;
  }
};

__device__ float warp_sum(float x) {
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) x += __shfl_xor_sync(kWholeWarp, x, other);
  return x;
}
__device__ float warp_max(float x) {
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, other));
  return x;
}

// Of one head: up to 32 kDims columns, kRows rows a warp.
template <int kDims, int kRows>
struct Tiles {
  static constexpr int kColumns = kLanes * kDims;
  static constexpr int kBlockRows = kWarps * kRows;
  float tile[kLanes][kColumns + 1];  // an odd stride: lanes that read a column meet in no bank
  float rows[kBlockRows][kColumns];

  // Rows [begin, begin + n) of the head at `column`; zeros beyond `end` and behind D.
  template <class T, int kStride>
  __device__ static void load(const T* from, int64_t row, int column, int dim, int begin, int end, int n,
                              float (*to)[kStride]) {
    for (int r = 0; r < n; ++r)
      for (int d = static_cast<int>(threadIdx.x); d < kColumns; d += kWarps * kLanes)
        to[r][d] = d < dim && begin + r < end ? to_float(from[(begin + r) * row + column + d]) : 0.0f;
  }
  template <class T>
  __device__ void load_tile(const T* from, int64_t row, int column, int dim, int begin, int end) {
    __syncthreads();
    load(from, row, column, dim, begin, end, kLanes, tile);
    __syncthreads();
  }

  // Of the warp's rows with the lane's row of the tile.
  __device__ void dots(const float (*own)[kColumns], int dim, float (&x)[kRows]) const {
    const int lane = static_cast<int>(threadIdx.x) % kLanes, first = static_cast<int>(threadIdx.x) / kLanes * kRows;
#pragma unroll
    for (int r = 0; r < kRows; ++r) x[r] = 0;
    for (int d = 0; d < dim; d += 4) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 q = *reinterpret_cast<const float4*>(&own[first + r][d]);
        x[r] = fmaf(q.x, tile[lane][d], x[r]);
        x[r] = fmaf(q.y, tile[lane][d + 1], x[r]);
        x[r] = fmaf(q.z, tile[lane][d + 2], x[r]);
        x[r] = fmaf(q.w, tile[lane][d + 3], x[r]);
      }
    }
  }
  // sums += weights (one a lane) times the rows of the tile.
  __device__ void accumulate(const float (&weight)[kRows], float (&sums)[kRows][kDims]) const {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    for (int j = 0; j < kLanes; ++j) {
      float x[kDims];
#pragma unroll
      for (int i = 0; i < kDims; ++i) x[i] = tile[j][i * kLanes + lane];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float w = __shfl_sync(kWholeWarp, weight[r], j);
#pragma unroll
        for (int i = 0; i < kDims; ++i) sums[r][i] = fmaf(w, x[i], sums[r][i]);
      }
    }
  }
  // sums times `factor` -> row t of a head.
  template <class T>
  __device__ static void store(const float (&sums)[kDims], float factor, int dim, T* to) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll
    for (int i = 0; i < kDims; ++i)
      if (i * kLanes + lane < dim) to[i * kLanes + lane] = from_float<T>(sums[i] * factor);
  }
};

// grid: blocks of query tokens x query heads. lse may be null.
template <class T, int kDims, int kRows>
__global__ void forward(Problem p, const T* qkv, T* o, float* lse) {
  using Shared = Tiles<kDims, kRows>;
  __shared__ __align__(16) Shared shared;
  const int head = static_cast<int>(blockIdx.y), kv_head = head / p.group();
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int t0 = static_cast<int>(blockIdx.x) * Shared::kBlockRows, last = min(t0 + Shared::kBlockRows, p.tokens) - 1;
  const int own = t0 + static_cast<int>(threadIdx.x) / kLanes * kRows;  // the warp's first token
  Shared::load(qkv, p.row(), p.q_column(head), p.dim, t0, p.tokens, Shared::kBlockRows, shared.rows);
  float most[kRows], total[kRows], sums[kRows][kDims] = {};
  int first[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    most[r] = -FLT_MAX;
    total[r] = 0;
    first[r] = own + r < p.tokens ? p.first_key(own + r) : INT_MAX;
  }
  for (int k0 = p.first_key(t0); k0 <= last; k0 += kLanes) {
    float s[kRows];
    shared.load_tile(qkv, p.row(), p.k_column(kv_head), p.dim, k0, p.tokens);
    shared.dots(shared.rows, p.dim, s);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int key = k0 + lane;
      s[r] = key <= own + r && key >= first[r] ? s[r] * p.scale : kHidden;
      const float higher = fmaxf(most[r], warp_max(s[r])), factor = expf(most[r] - higher);
      most[r] = higher;
      s[r] = expf(s[r] - higher);
      total[r] = fmaf(total[r], factor, warp_sum(s[r]));
#pragma unroll
      for (int i = 0; i < kDims; ++i) sums[r][i] *= factor;
    }
    shared.load_tile(qkv, p.row(), p.v_column(kv_head), p.dim, k0, p.tokens);
    shared.accumulate(s, sums);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int t = own + r;
    if (t >= p.tokens) continue;
    Shared::store(sums[r], 1.0f / total[r], p.dim, o + t * p.o_row() + p.q_column(head));
    if (lse && lane == 0) lse[p.lse_index(head, t)] = most[r] + logf(total[r]);
  }
}

// delta[head, t] = Σ do ∘ o. A warp for each.
template <class T>
__global__ void dot_outputs(Problem p, const T* d_o, const T* o, float* delta) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (i >= static_cast<int64_t>(p.tokens) * p.query_heads) return;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int t = static_cast<int>(i / p.query_heads), head = static_cast<int>(i % p.query_heads);
  const int64_t at = t * p.o_row() + p.q_column(head);
  float x = 0;
  for (int d = lane; d < p.dim; d += kLanes) x = fmaf(to_float(d_o[at + d]), to_float(o[at + d]), x);
  x = warp_sum(x);
  if (lane == 0) delta[static_cast<int64_t>(head) * p.tokens + t] = x;
}

template <class T>
struct AttentionBackwardArgs {
  const T *d_o, *qkv;
  const float *lse, *delta;
  T* dqkv;
};

// The gradient of a score is ds = p (do·v - delta), p = exp(score - lse).

// dq = scale Σ ds k; grid as forward.
template <class T, int kDims, int kRows>
__global__ void backward_queries(Problem p, AttentionBackwardArgs<T> g) {
  using Shared = Tiles<kDims, kRows>;
  __shared__ __align__(16) Shared shared;
  __shared__ __align__(16) float d_o[Shared::kBlockRows][Shared::kColumns];
  const int head = static_cast<int>(blockIdx.y), kv_head = head / p.group();
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int t0 = static_cast<int>(blockIdx.x) * Shared::kBlockRows, last = min(t0 + Shared::kBlockRows, p.tokens) - 1;
  const int own = t0 + static_cast<int>(threadIdx.x) / kLanes * kRows;
  Shared::load(g.qkv, p.row(), p.q_column(head), p.dim, t0, p.tokens, Shared::kBlockRows, shared.rows);
  Shared::load(g.d_o, p.o_row(), p.q_column(head), p.dim, t0, p.tokens, Shared::kBlockRows, d_o);
  float lse[kRows], delta[kRows], dq[kRows][kDims] = {};
  int first[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int t = min(own + r, p.tokens - 1);
    lse[r] = g.lse[p.lse_index(head, t)];
    delta[r] = g.delta[static_cast<int64_t>(head) * p.tokens + t];
    first[r] = own + r < p.tokens ? p.first_key(t) : INT_MAX;
  }
  for (int k0 = p.first_key(t0); k0 <= last; k0 += kLanes) {
    float s[kRows], ds[kRows];
    shared.load_tile(g.qkv, p.row(), p.v_column(kv_head), p.dim, k0, p.tokens);
    shared.dots(d_o, p.dim, ds);
    shared.load_tile(g.qkv, p.row(), p.k_column(kv_head), p.dim, k0, p.tokens);
    shared.dots(shared.rows, p.dim, s);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int key = k0 + lane;
      const bool seen = key <= own + r && key >= first[r];
      ds[r] = seen ? expf(s[r] * p.scale - lse[r]) * (ds[r] - delta[r]) : 0.0f;
    }
    shared.accumulate(ds, dq);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (own + r < p.tokens) Shared::store(dq[r], p.scale, p.dim, g.dqkv + (own + r) * p.row() + p.q_column(head));
}

// dk = scale Σ ds q, dv = Σ p do, over the query heads of the group and the tokens that see the key, in one order;
// grid: blocks of keys x key/value heads.
template <class T, int kDims, int kRows>
__global__ void backward_keys(Problem p, AttentionBackwardArgs<T> g) {
  using Shared = Tiles<kDims, kRows>;
  __shared__ __align__(16) Shared shared;  // rows: keys
  __shared__ __align__(16) float values[Shared::kBlockRows][Shared::kColumns];
  const int kv_head = static_cast<int>(blockIdx.y), lane = static_cast<int>(threadIdx.x) % kLanes;
  const int j0 = static_cast<int>(blockIdx.x) * Shared::kBlockRows, last = min(j0 + Shared::kBlockRows, p.tokens) - 1;
  const int own = j0 + static_cast<int>(threadIdx.x) / kLanes * kRows;
  Shared::load(g.qkv, p.row(), p.k_column(kv_head), p.dim, j0, p.tokens, Shared::kBlockRows, shared.rows);
  Shared::load(g.qkv, p.row(), p.v_column(kv_head), p.dim, j0, p.tokens, Shared::kBlockRows, values);
  float dk[kRows][kDims] = {}, dv[kRows][kDims] = {};
  for (int head = kv_head * p.group(); head < (kv_head + 1) * p.group(); ++head) {
    for (int t0 = j0; t0 < p.tokens && p.first_key(t0) <= last; t0 += kLanes) {
      const int t = t0 + lane;
      const bool there = t < p.tokens;
      const int first = there ? p.first_key(t) : INT_MAX;
      const float lse = there ? g.lse[p.lse_index(head, t)] : 0.0f;
      const float delta = there ? g.delta[static_cast<int64_t>(head) * p.tokens + t] : 0.0f;
      float weight[kRows], ds[kRows];
      shared.load_tile(g.d_o, p.o_row(), p.q_column(head), p.dim, t0, p.tokens);
      shared.dots(values, p.dim, ds);
      shared.load_tile(g.qkv, p.row(), p.q_column(head), p.dim, t0, p.tokens);
      shared.dots(shared.rows, p.dim, weight);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const bool seen = there && own + r <= t && own + r >= first;
        weight[r] = seen ? expf(weight[r] * p.scale - lse) : 0.0f;
        ds[r] = seen ? weight[r] * (ds[r] - delta) : 0.0f;
      }
      shared.accumulate(ds, dk);
      shared.load_tile(g.d_o, p.o_row(), p.q_column(head), p.dim, t0, p.tokens);
      shared.accumulate(weight, dv);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (own + r >= p.tokens) continue;
    T* row = g.dqkv + (own + r) * p.row();
    Shared::store(dk[r], p.scale, p.dim, row + p.k_column(kv_head));
    Shared::store(dv[r], 1.0f, p.dim, row + p.v_column(kv_head));
  }
}

Problem problem_of(const Context& ctx, const AttentionSpec& spec, int64_t tokens, LseOrder order) {
  const Heads& heads = spec.heads;
  return {ctx.document_start.as<int32_t>(),
          static_cast<int>(tokens),
          static_cast<int>(heads.query),
          static_cast<int>(heads.kv),
          static_cast<int>(heads.dim),
          static_cast<int>(std::min(spec.window, tokens)),
          spec.scale(),
          order};
}

// Calls f.operator()<T, kDims, kRows>() for the type and head dimension; what does not fit shared memory of 48 KiB has
// fewer rows.
template <class F>
void dispatch(DType dtype, int64_t dim, F&& f) {
  require(dim <= 256, "attention on a GPU takes heads of dimension 256 at most, not {}; use --device cpu", dim);
  const auto by_dim = [&]<class T>() {
    if (dim <= 64) return f.template operator()<T, 2, 4>();
    if (dim <= 128) return f.template operator()<T, 4, 4>();
    return f.template operator()<T, 8, 1>();
  };
  dtype == DType::F32 ? by_dim.template operator()<float>() : by_dim.template operator()<Bf16>();
}

template <int kDims, int kRows>
dim3 grid_of(int64_t tokens, int64_t heads) {
  constexpr int64_t kBlockRows = Tiles<kDims, kRows>::kBlockRows;
  return {static_cast<unsigned>((tokens + kBlockRows - 1) / kBlockRows), static_cast<unsigned>(heads)};
}

constexpr dim3 kBlock{kWarps * kLanes};

}  // namespace

void generic_attention(const Context& ctx, const Tensor& qkv, const AttentionSpec& spec, const Tensor& o,
                       const Tensor& lse) {
  const int64_t tokens = qkv.shape[0];
  if (tokens == 0) return;
  const Problem p = problem_of(ctx, spec, tokens, LseOrder::heads_first(spec.heads.query, tokens));
  dispatch(qkv.dtype, spec.heads.dim, [&]<class T, int kDims, int kRows>() {
    agoq::cuda::launch(ctx, forward<T, kDims, kRows>, grid_of<kDims, kRows>(tokens, spec.heads.query), kBlock, p,
                       qkv.as<T>(), o.as<T>(), lse ? lse.as<float>() : nullptr);
  });
}

void generic_attention_backward(const Context& ctx, const AttentionGradient& gradient, const AttentionSpec& spec,
                                LseOrder order, float* delta) {
  const int64_t tokens = gradient.qkv.shape[0];
  if (tokens == 0) return;
  const Problem p = problem_of(ctx, spec, tokens, order);
  dispatch(gradient.qkv.dtype, spec.heads.dim, [&]<class T, int kDims, int kRows>() {
    const T *d_o = gradient.d_o.as<T>(), *o = gradient.o.as<T>();
    const AttentionBackwardArgs<T> g{d_o, gradient.qkv.as<T>(), gradient.lse.as<float>(), delta, gradient.dqkv.as<T>()};
    const int64_t dots = tokens * spec.heads.query;
    agoq::cuda::launch(ctx, dot_outputs<T>, dim3(static_cast<unsigned>((dots + kWarps - 1) / kWarps)), kBlock, p, d_o,
                       o, delta);
    agoq::cuda::launch(ctx, backward_queries<T, kDims, kRows>, grid_of<kDims, kRows>(tokens, spec.heads.query), kBlock,
                       p, g);
    agoq::cuda::launch(ctx, backward_keys<T, kDims, kRows>, grid_of<kDims, kRows>(tokens, spec.heads.kv), kBlock, p, g);
  });
}

}  // namespace agoq::ops::cuda
