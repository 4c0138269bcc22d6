#include "ops/norm/rms_norm_cuda.h"

#include "ops/by_type.h"
#include "ops/norm/norm_kernels.cuh"

namespace agoq::ops::cuda {
namespace {

// --- heads ----------------------------------------------------------------------------------------------------------

constexpr int kHeadThreads = 256;
constexpr int kHeadsAtOnce = kHeadThreads / kLanes;  // a half-warp has one
constexpr int kMostHeadGroups = 2;                   // so a head has at most 256 numbers

// The query and key heads of all tokens in order.
struct HeadRows {
  int cols = 0, dim = 0, query = 0, count = 0;  // of qkv; of a head; heads
  codec::cuda::FastDivmod by_token;

  explicit HeadRows(const Heads& heads)
      : cols(static_cast<int>(heads.cols())),
        dim(static_cast<int>(heads.dim)),
        query(static_cast<int>(heads.query)),
        count(static_cast<int>(heads.query + heads.kv)),
        by_token(static_cast<uint32_t>(count)) {}
  __device__ int col(int g) const { return g * static_cast<int>(codec::kBlock) + lane() * kGroup; }
  __device__ int n(int g) const { return min(max(dim - col(g), 0), kGroup); }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kLanes; }

  struct Head {
    int64_t first = 0;  // element of qkv
    bool key = false;
  };
  __device__ Head head(uint32_t i) const {
    const uint32_t token = by_token.divide(i);
    const int h = static_cast<int>(i - token * static_cast<uint32_t>(count));
    return {int64_t{token} * cols + h * dim, h >= query};
  }
};

template <class T>
struct HeadNorm {
  HeadRows rows;
  uint32_t items = 0;
  T* qkv = nullptr;
  FloatPtr wq, wk;
  float eps = 0;
  float* rstd = nullptr;
  bool again = false;  // rstd is given
};

template <class T, int kGroups>
__global__ void __launch_bounds__(kHeadThreads) head_norm_kernel(const __grid_constant__ PdlArgs<HeadNorm<T>> given) {
  const HeadNorm<T>& f = given.wait();
  const uint32_t i = blockIdx.x * kHeadsAtOnce + threadIdx.x / kLanes;
  const bool valid = i < f.items;
  const HeadRows::Head head = f.rows.head(valid ? i : 0);
  FloatVec8 x[kGroups];
  float squares = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    codec::cuda::load8(f.qkv + head.first + f.rows.col(g), valid ? f.rows.n(g) : 0, x[g]);
    squares = sum_of_squares(x[g], squares);
  }
  float rstd;
  if (f.again) {
    rstd = f.rstd[valid ? i : 0];
  } else {
    rstd = rstd_of(lane_sum<kLanes>(squares) / static_cast<float>(f.rows.dim), f.eps);
    if (f.rstd && valid && HeadRows::lane() == 0) f.rstd[i] = rstd;
  }
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int n = valid ? f.rows.n(g) : 0;
    FloatVec8 w;
    (head.key ? f.wk : f.wq).load8(f.rows.col(g), n, w);
    scale(x[g], rstd);
    scale(x[g], w);
    store8(f.qkv + head.first + f.rows.col(g), n, x[g]);
  }
}

template <class T>
struct HeadBackward {
  HeadRows rows;
  int64_t tokens = 0;
  T* dqkv = nullptr;  // in place
  const T* qkv = nullptr;
  FloatPtr wq, wk;
  const float* rstd = nullptr;
  float* partial = nullptr;  // [2, slices, D]
};

// One CTA, one slice of the tokens. Its half-warps take the heads in turn; their sums are added in order at the end.
template <class T, int kGroups>
__global__ void __launch_bounds__(kHeadThreads)
    head_backward_kernel(const __grid_constant__ PdlArgs<HeadBackward<T>> given) {
  const HeadBackward<T>& b = given.wait();
  __shared__ float sums[kHeadsAtOnce][kLanes * kGroup];
  const int64_t slices = gridDim.x, begin = b.tokens * blockIdx.x / slices, end = b.tokens * (blockIdx.x + 1) / slices;
  const auto first_item = static_cast<uint32_t>(begin * b.rows.count);
  const auto end_item = static_cast<uint32_t>(end * b.rows.count);
  const uint32_t half_warp = threadIdx.x / kLanes;
  FloatVec8 dw[2][kGroups] = {};
  for (uint32_t base = first_item; base < end_item; base += kHeadsAtOnce) {  // whole warps
    const uint32_t i = base + half_warp;
    const bool valid = i < end_item;
    const HeadRows::Head head = b.rows.head(valid ? i : first_item);
    FloatVec8 d[kGroups], x[kGroups], w[kGroups];
    float products = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int n = valid ? b.rows.n(g) : 0;
      codec::cuda::load8(b.dqkv + head.first + b.rows.col(g), n, d[g]);
      codec::cuda::load8(b.qkv + head.first + b.rows.col(g), n, x[g]);
      (head.key ? b.wk : b.wq).load8(b.rows.col(g), n, w[g]);
    }
    const float rstd = b.rstd[valid ? i : first_item];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      scale(x[g], rstd);  // x̂
      if (head.key)
        add_products(d[g], x[g], dw[1][g]);
      else
        add_products(d[g], x[g], dw[0][g]);
      scale(d[g], w[g]);
      products = sum_of_products(d[g], x[g], products);
    }
    const float mean_product = lane_sum<kLanes>(products) / static_cast<float>(b.rows.dim);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      differentiate(d[g], x[g], rstd, 0.0f, mean_product);
      store8(b.dqkv + head.first + b.rows.col(g), valid ? b.rows.n(g) : 0, d[g]);
    }
  }
#pragma unroll
  for (int kind = 0; kind < 2; ++kind) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      __syncthreads();
      store8(&sums[half_warp][HeadRows::lane() * kGroup], kGroup, dw[kind][g]);
      __syncthreads();
      const int c = static_cast<int>(threadIdx.x), col = g * static_cast<int>(codec::kBlock) + c;
      if (c >= static_cast<int>(codec::kBlock) || col >= b.rows.dim) continue;
      float total = 0;
      for (int h = 0; h < kHeadsAtOnce; ++h) total += sums[h][c];
      b.partial[(kind * slices + blockIdx.x) * b.rows.dim + col] = total;
    }
  }
}

// Calls launch.operator()<kGroups>() for heads of this size.
template <class Launch>
void with_head_groups(const Heads& heads, Launch&& launch) {
  require(heads.dim <= kMostHeadGroups * codec::kBlock,
          "qk_norm: a head of {} numbers is too long for its CUDA kernel: at most {}", heads.dim,
          kMostHeadGroups * codec::kBlock);
  heads.dim <= codec::kBlock ? launch.template operator()<1>() : launch.template operator()<kMostHeadGroups>();
}

uint32_t head_items(const Tensor& qkv, const Heads& heads) {
  const int64_t items = qkv.rows() * (heads.query + heads.kv);
  require(items <= std::numeric_limits<int32_t>::max(), "qk_norm: {} tokens of {} heads are more than 2^31 heads",
          qkv.rows(), heads.query + heads.kv);
  return static_cast<uint32_t>(items);
}

void normalise_heads(const Context& ctx, const Tensor& qkv, const Heads& heads, const HeadWeights& w, float eps,
                     const Tensor& rstd, bool again) {
  const uint32_t items = head_items(qkv, heads);
  by_type(qkv.dtype, [&]<class T>() {
    const HeadNorm<T> f{HeadRows(heads),
                        items,
                        qkv.as<T>(),
                        FloatPtr(w.q),
                        FloatPtr(w.k),
                        eps,
                        rstd ? rstd.as<float>() : nullptr,
                        again};
    with_head_groups(heads, [&]<int kGroups>() {
      agoq::cuda::launch(ctx, head_norm_kernel<T, kGroups>, dim3((items + kHeadsAtOnce - 1) / kHeadsAtOnce),
                         dim3(kHeadThreads), f);
    });
  });
}

}  // namespace

void rms_norm(const Context& ctx, const Tensor& x, const Tensor& w, float eps, const codec::Quantized& keep_x,
              const Tensor& rstd, const Operand& n) {
  norm_forward<NormKind::Rms>(ctx, x, w, eps, keep_x, rstd, n);
}

void recompute_rms_norm(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w,
                        const Tensor& n) {
  recompute_norm<NormKind::Rms>(ctx, kept_x, rstd, w, n);
}

void recompute_rms_norm_transposed(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd,
                                   const Tensor& w, const Operand& nt) {
  recompute_norm_turned<NormKind::Rms>(ctx, kept_x, rstd, w, {}, nt);
}

void rms_norm_backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                       const Tensor& w, const Tensor& residual, const Tensor& dx, const Operand& dx_rows,
                       const Tensor& partial) {
  norm_backward<NormKind::Rms>(ctx, dn, kept_x, rstd, w, residual, dx, dx_rows, partial);
}

void qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const HeadWeights& w, float eps,
             const Tensor& rstd) {
  normalise_heads(ctx, qkv, heads, w, eps, rstd, false);
}

void recompute_qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const HeadWeights& w,
                       const Tensor& rstd) {
  normalise_heads(ctx, qkv, heads, w, 0.0f, rstd, true);
}

void qk_norm_backward(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const Heads& heads,
                      const HeadWeights& w, const Tensor& rstd, const Tensor& partial) {
  head_items(dqkv, heads);
  by_type(dqkv.dtype, [&]<class T>() {
    const HeadBackward<T> b{HeadRows(heads), dqkv.rows(),   dqkv.as<T>(),     qkv_before.as<T>(),
                            FloatPtr(w.q),   FloatPtr(w.k), rstd.as<float>(), partial.as<float>()};
    with_head_groups(heads, [&]<int kGroups>() {
      agoq::cuda::launch(ctx, head_backward_kernel<T, kGroups>, dim3(static_cast<unsigned>(partial.shape[1])),
                         dim3(kHeadThreads), b);
    });
  });
}

}  // namespace agoq::ops::cuda
