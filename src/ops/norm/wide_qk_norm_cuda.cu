#include "ops/norm/wide_qk_norm_cuda.h"

#include <algorithm>

#include "ops/by_type.h"
#include "ops/norm/norm_rows.cuh"

namespace agoq::ops::cuda {
namespace {

constexpr int kThreads = 256;

// q or k in rows of qkv.
struct Span {
  int begin = 0, count = 0;
  float share = 0;  // of a number in a mean over all ranks
  FloatPtr w;
};

struct WideRows {
  Span spans[2];
  int cols = 0, count = 0;  // of a row; rows

  WideRows(const Tensor& qkv, const WideNorm& norm)
      : spans{{0, static_cast<int>(norm.heads.q_cols()), 1.0f / norm.q_width, FloatPtr(norm.wq)},
              {static_cast<int>(norm.heads.k_begin()), static_cast<int>(norm.heads.kv_cols()), 1.0f / norm.k_width,
               FloatPtr(norm.wk)}},
        cols(static_cast<int>(qkv.cols())),
        count(static_cast<int>(qkv.rows())) {}
  __device__ int64_t first(int row, const Span& span) const { return int64_t{row} * cols + span.begin; }
};

// Calls fn(first column, how many) for the thread's groups of a span in turn.
template <class Fn>
__device__ inline void each_group(const Span& span, Fn&& fn) {
#pragma unroll 1
  for (int col = static_cast<int>(threadIdx.x) * kGroup; col < span.count; col += kThreads * kGroup)
    fn(col, min(span.count - col, kGroup));
}

template <class T>
struct WideSums {
  WideRows rows;
  const T *x = nullptr, *dn = nullptr;  // dn: none in forward
  float* sums = nullptr;                // [T, 2]
};

// Σ x², or Σ dn·w·x.
template <class T>
__global__ void __launch_bounds__(kThreads) wide_sums_kernel(const __grid_constant__ PdlArgs<WideSums<T>> given) {
  const WideSums<T>& f = given.wait();
  CtaSum cta_sum;
  for (int row = static_cast<int>(blockIdx.x); row < f.rows.count; row += static_cast<int>(gridDim.x))
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const Span& span = f.rows.spans[i];
      const int64_t first = f.rows.first(row, span);
      float sum = 0;
      each_group(span, [&](int col, int n) {
        FloatVec8 x, d, w;
        codec::cuda::load8(f.x + first + col, n, x);
        if (!f.dn) {
          sum = sum_of_squares(x, sum);
          return;
        }
        codec::cuda::load8(f.dn + first + col, n, d);
        span.w.load8(col, n, w);
        scale(d, w);
        sum = sum_of_products(d, x, sum);
      });
      sum = cta_sum(sum);
      if (threadIdx.x == 0) f.sums[2 * int64_t{row} + i] = sum;
    }
}

template <class T>
struct WideScale {
  WideRows rows;
  T* qkv = nullptr;             // in place
  const float* sums = nullptr;  // of squares, or none: rstd is given
  float* rstd = nullptr;        // [T, 2]; with sums it may be none
  float eps = 0;
};

template <class T>
__global__ void __launch_bounds__(kThreads) wide_scale_kernel(const __grid_constant__ PdlArgs<WideScale<T>> given) {
  const WideScale<T>& f = given.wait();
  for (int row = static_cast<int>(blockIdx.x); row < f.rows.count; row += static_cast<int>(gridDim.x))
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const Span& span = f.rows.spans[i];
      const int64_t first = f.rows.first(row, span), at = 2 * int64_t{row} + i;
      const float rstd = f.sums ? rstd_of(f.sums[at] * span.share, f.eps) : f.rstd[at];
      if (f.sums && f.rstd && threadIdx.x == 0) f.rstd[at] = rstd;
      each_group(span, [&](int col, int n) {
        FloatVec8 x, w;
        codec::cuda::load8(f.qkv + first + col, n, x);
        span.w.load8(col, n, w);
        scale(x, rstd);
        scale(x, w);
        store8(f.qkv + first + col, n, x);
      });
    }
}

template <class T>
struct WideBackward {
  WideRows rows;
  T* dqkv = nullptr;  // in place
  const T* qkv = nullptr;
  const float *rstd = nullptr, *sums = nullptr;  // [T, 2]
  float* slices[2] = {};                         // [CTAs, columns of the span]
};

// One CTA, one slice of the rows. Its sums for dw grow where they lie, each touched by one thread alone.
template <class T>
__global__ void __launch_bounds__(kThreads)
    wide_backward_kernel(const __grid_constant__ PdlArgs<WideBackward<T>> given) {
  const WideBackward<T>& b = given.wait();
  const CtaRows slice(b.rows.count);
  for (int row = slice.begin; row < slice.end; ++row)
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const Span& span = b.rows.spans[i];
      const int64_t first = b.rows.first(row, span), at = 2 * int64_t{row} + i;
      const float rstd = b.rstd[at], mean_product = b.sums[at] * rstd * span.share;
      each_group(span, [&](int col, int n) {
        FloatVec8 d, hat, other;
        codec::cuda::load8(b.dqkv + first + col, n, d);
        codec::cuda::load8(b.qkv + first + col, n, hat);
        scale(hat, rstd);
        float* dw = b.slices[i] + int64_t{blockIdx.x} * span.count + col;
        codec::cuda::load8(dw, row > slice.begin ? n : 0, other);
        add_products(d, hat, other);
        store8(dw, n, other);
        span.w.load8(col, n, other);
        scale(d, other);
        differentiate(d, hat, rstd, 0.0f, mean_product);
        store8(b.dqkv + first + col, n, d);
      });
    }
}

template <class Kernel, class Arguments>
void launch_rows(const Context& ctx, Kernel kernel, const Arguments& arguments) {
  const int at_once = ctx.gpu().multiprocessors() * (2048 / kThreads);
  agoq::cuda::launch(ctx, kernel, dim3(static_cast<unsigned>(std::min(arguments.rows.count, at_once))), dim3(kThreads),
                     arguments);
}

void scale_rows(const Context& ctx, const Tensor& qkv, const WideNorm& norm, const Tensor& sums, const Tensor& rstd) {
  by_type(qkv.dtype, [&]<class T>() {
    launch_rows(ctx, wide_scale_kernel<T>,
                WideScale<T>{WideRows(qkv, norm), qkv.as<T>(), sums ? sums.as<float>() : nullptr,
                             rstd ? rstd.as<float>() : nullptr, norm.eps});
  });
}

}  // namespace

void sum_squares(const Context& ctx, const Tensor& qkv, const WideNorm& norm, const Tensor& sums) {
  by_type(qkv.dtype, [&]<class T>() {
    launch_rows(ctx, wide_sums_kernel<T>, WideSums<T>{WideRows(qkv, norm), qkv.as<T>(), nullptr, sums.as<float>()});
  });
}

void normalise_qk(const Context& ctx, const Tensor& qkv, const WideNorm& norm, const Tensor& sums, const Tensor& rstd) {
  scale_rows(ctx, qkv, norm, sums, rstd);
}

void scale_qk(const Context& ctx, const Tensor& qkv, const WideNorm& norm, const Tensor& rstd) {
  scale_rows(ctx, qkv, norm, {}, rstd);
}

void sum_products(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const WideNorm& norm,
                  const Tensor& sums) {
  by_type(dqkv.dtype, [&]<class T>() {
    launch_rows(ctx, wide_sums_kernel<T>,
                WideSums<T>{WideRows(dqkv, norm), qkv_before.as<T>(), dqkv.as<T>(), sums.as<float>()});
  });
}

void wide_qk_norm_backward(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const WideNorm& norm,
                           const Tensor& rstd, const Tensor& sums, const Tensor& q_slices, const Tensor& k_slices) {
  by_type(dqkv.dtype, [&]<class T>() {
    const WideBackward<T> b{WideRows(dqkv, norm), dqkv.as<T>(),     qkv_before.as<T>(),
                            rstd.as<float>(),     sums.as<float>(), {q_slices.as<float>(), k_slices.as<float>()}};
    agoq::cuda::launch(ctx, wide_backward_kernel<T>, dim3(static_cast<unsigned>(q_slices.rows())), dim3(kThreads), b);
  });
}

}  // namespace agoq::ops::cuda
