// RMSNorm and LayerNorm over rows: one pass over memory, forward, again and backward. A CTA holds a row, and fetches
// the next one while it works on one.
#pragma once

#include "ops/by_type.h"
#include "ops/norm_rows.cuh"

namespace agoq::ops::cuda {

// Rms: n = x·rstd·w. Layer: n = (x - mean)·rstd; its mean is that of x as it was kept, and is never stored.
enum class Norm { Rms, Layer };

// --- a thread's eight numbers ----------------------------------------------------------------------------------------

__device__ inline float sum_of(const Numbers& x, float sum = 0) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) sum += x[i];
  return sum;
}

__device__ inline float sum_of_squares(const Numbers& x, float sum = 0) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) sum = fmaf(x[i], x[i], sum);
  return sum;
}

__device__ inline float sum_of_products(const Numbers& a, const Numbers& b, float sum = 0) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) sum = fmaf(a[i], b[i], sum);
  return sum;
}

__device__ inline float rstd_of(float squares, int n, float eps) {
  return rsqrtf(squares / static_cast<float>(n) + eps);
}

__device__ inline void scale(Numbers& x, const Numbers& by) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) x[i] *= by[i];
}
__device__ inline void scale(Numbers& x, float by) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) x[i] *= by;
}

// The first n of x minus their row's mean; zeros behind them stay.
__device__ inline void centre(Numbers& x, int n, float mean) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) x[i] = i < n ? x[i] - mean : 0.0f;
}

// dw += dn·x̂
__device__ inline void add_products(const Numbers& dn, const Numbers& hat, Numbers& dw) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) dw[i] = fmaf(dn[i], hat[i], dw[i]);
}

// dx = rstd·(g - mean(g) - x̂·mean(g·x̂)), in place of g.
__device__ inline void differentiate(Numbers& g, const Numbers& hat, float rstd, float mean, float mean_product) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) g[i] = rstd * fmaf(-hat[i], mean_product, g[i] - mean);
}

// --- rows -----------------------------------------------------------------------------------------------------------

// Stands for "not kept" where a kernel wants a format: codes nothing.
using NotKept = codec::Fp32;
using codec::cuda::View;

template <class T>
struct NormForward {
  const T* x = nullptr;
  AnyNumbers w;
  float eps = 0;
  View keep;  // its row is that of x even if nothing is kept
  bool kept = false;
  float* rstd = nullptr;  // or none
  T* n = nullptr;
  int64_t rows = 0;

  template <class F, int kGroups>
  __device__ void fetch(int64_t row, Fetched8<T> (&to)[kGroups]) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const Place p = place_in_row<F>(keep.row, g);
      to[g] = fetch8(x + row * keep.row.cols + p.col, p.n);
    }
  }
};

template <Norm kNorm, class F, class T, int kGroups>
__global__ void __launch_bounds__(most_threads(kGroups), at_once(kGroups, 64)) norm_forward_kernel(NormForward<T> f) {
  constexpr bool kCentred = kNorm == Norm::Layer;
  const int cols = f.keep.row.cols;
  CtaSum cta_sum;
  Fetched8<T> now[kGroups], next[kGroups];
  f.template fetch<F>(blockIdx.x, next);
  for (int64_t row = blockIdx.x; row < f.rows; row += gridDim.x) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) now[g] = next[g];
    float sum = 0;  // of x, or of its squares where no mean is taken off
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      Numbers x;
      unpack8(now[g], x);
      sum = kCentred ? sum_of(x, sum) : sum_of_squares(x, sum);
      if (f.kept) codec::cuda::encode<F>(f.keep, row, place_in_row<F>(f.keep.row, g), x);
    }
    if (row + gridDim.x < f.rows) f.template fetch<F>(row + gridDim.x, next);
    float mean = 0, squares = cta_sum(sum);
    if constexpr (kCentred) {
      mean = squares / static_cast<float>(cols);
      float centred_squares = 0;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        Numbers x;
        unpack8(now[g], x);
        centre(x, place_in_row<F>(f.keep.row, g).n, mean);
        centred_squares = sum_of_squares(x, centred_squares);
      }
      squares = cta_sum(centred_squares);
    }
    const float rstd = rstd_of(squares, cols, f.eps);
    if (f.rstd && threadIdx.x == 0) f.rstd[row] = rstd;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const Place p = place_in_row<F>(f.keep.row, g);
      Numbers n, w;
      if constexpr (!kCentred) f.w.load8(p.col, p.n, w);
      unpack8(now[g], n);
      if constexpr (kCentred) centre(n, p.n, mean);
      scale(n, rstd);
      if constexpr (!kCentred) scale(n, w);
      store8(f.n + row * cols + p.col, p.n, n);
    }
  }
}

template <class T>
struct NormAgain {
  View kept;
  const float* rstd = nullptr;
  AnyNumbers w;
  T* n = nullptr;
  int64_t rows = 0;
};

// What was kept of a row.
template <class F, int kGroups>
struct KeptRow {
  codec::cuda::Fetched<F> x[kGroups];
  float rstd;

  __device__ void fetch(const View& kept, const float* all_rstd, int64_t row) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) x[g] = codec::cuda::fetch<F>(kept, row, place_in_row<F>(kept.row, g));
    rstd = all_rstd[row];
  }
  // Over the thread's numbers.
  __device__ float sum() const {
    float sum = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      Numbers numbers;
      codec::cuda::decode<F>(x[g], numbers);
      sum = sum_of(numbers, sum);
    }
    return sum;
  }
};

template <Norm kNorm, class F, class T, int kGroups>
__global__ void __launch_bounds__(most_threads(kGroups), at_once(kGroups, 64)) norm_again_kernel(NormAgain<T> a) {
  constexpr bool kCentred = kNorm == Norm::Layer;
  const int cols = a.kept.row.cols;
  CtaSum cta_sum;
  KeptRow<F, kGroups> next;
  next.fetch(a.kept, a.rstd, blockIdx.x);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const KeptRow<F, kGroups> now = next;
    if (row + gridDim.x < a.rows) next.fetch(a.kept, a.rstd, row + gridDim.x);
    float mean = 0;
    if constexpr (kCentred) mean = cta_sum(now.sum()) / static_cast<float>(cols);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const Place p = place_in_row<F>(a.kept.row, g);
      Numbers n, w;
      if constexpr (!kCentred) a.w.load8(p.col, p.n, w);
      codec::cuda::decode<F>(now.x[g], n);
      if constexpr (kCentred) centre(n, p.n, mean);
      scale(n, now.rstd);
      if constexpr (!kCentred) scale(n, w);
      store8(a.n + row * cols + p.col, p.n, n);
    }
  }
}

template <class T>
struct NormBackward {
  const T* dn = nullptr;
  View kept;
  const float* rstd = nullptr;
  AnyNumbers w;
  const T* residual = nullptr;  // or none
  T* dx = nullptr;              // may be the residual
  float* partial = nullptr;     // [slices, H], of a norm with weights
  int64_t rows = 0;
};

// What backward reads of a row.
template <class F, class T, int kGroups>
struct NormBackwardRow : KeptRow<F, kGroups> {
  Fetched8<T> dn[kGroups];

  __device__ void fetch(const NormBackward<T>& b, int64_t row) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const Place p = place_in_row<F>(b.kept.row, g);
      dn[g] = fetch8(b.dn + row * b.kept.row.cols + p.col, p.n);
    }
    KeptRow<F, kGroups>::fetch(b.kept, b.rstd, row);
  }
  __device__ float sum_of_dn() const {
    float sum = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      Numbers numbers;
      unpack8(dn[g], numbers);
      sum = sum_of(numbers, sum);
    }
    return sum;
  }
};

// One CTA, one slice of the rows; dw stays in registers until its end.
template <Norm kNorm, class F, class T, int kGroups>
__global__ void __launch_bounds__(most_threads(kGroups), at_once(kGroups, 96)) norm_backward_kernel(NormBackward<T> b) {
  constexpr bool kCentred = kNorm == Norm::Layer;
  const int64_t slices = gridDim.x, begin = b.rows * blockIdx.x / slices, end = b.rows * (blockIdx.x + 1) / slices;
  const int cols = b.kept.row.cols;
  const float share = 1.0f / static_cast<float>(cols);
  Numbers dw[kGroups] = {};
  CtaSum cta_sum;
  NormBackwardRow<F, T, kGroups> next;
  next.fetch(b, begin);
  for (int64_t row = begin; row < end; ++row) {
    const NormBackwardRow<F, T, kGroups> now = next;
    if (row + 1 < end) next.fetch(b, row + 1);
    float mean_x = 0, mean_dn = 0;
    if constexpr (kCentred) {
      mean_x = cta_sum(now.sum()) * share;
      mean_dn = cta_sum(now.sum_of_dn()) * share;
    }
    // x̂ and the gradient of what it is multiplied into, g = dn·w.
    const auto unpack = [&](int group, const Place& p, Numbers& hat, Numbers& g) {
      codec::cuda::decode<F>(now.x[group], hat);
      if constexpr (kCentred) centre(hat, p.n, mean_x);
      scale(hat, now.rstd);
      unpack8(now.dn[group], g);
    };
    float products = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const Place p = place_in_row<F>(b.kept.row, g);
      Numbers hat, dn, w;
      if constexpr (!kCentred) b.w.load8(p.col, p.n, w);
      unpack(g, p, hat, dn);
      if constexpr (!kCentred) scale(dn, w);
      products = sum_of_products(dn, hat, products);
    }
    Fetched8<T> residual[kGroups] = {};
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const Place p = place_in_row<F>(b.kept.row, g);
      if (b.residual) residual[g] = fetch8(b.residual + row * cols + p.col, p.n);
    }
    const float mean_product = cta_sum(products) * share;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const Place p = place_in_row<F>(b.kept.row, g);
      Numbers hat, dx, w, added;
      if constexpr (!kCentred) b.w.load8(p.col, p.n, w);
      unpack(g, p, hat, dx);
      if constexpr (!kCentred) {
        add_products(dx, hat, dw[g]);
        scale(dx, w);
      }
      differentiate(dx, hat, now.rstd, mean_dn, mean_product);
      unpack8(residual[g], added);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) dx[i] += added[i];
      store8(b.dx + row * cols + p.col, p.n, dx);
    }
  }
  if constexpr (!kCentred) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const Place p = place_in_row<F>(b.kept.row, g);
      store8(b.partial + int64_t{blockIdx.x} * cols + p.col, p.n, dw[g]);
    }
  }
}

// --- launches -------------------------------------------------------------------------------------------------------

// Calls launch.operator()<F, kGroups>(threads) for rows kept in this codec.
template <class Launch>
void with_format(codec::Codec codec, const codec::RowBlocks& row, Launch&& launch) {
  codec::dispatch(codec, [&]<class F>() {
    with_row_threads(row, [&]<int kGroups>(int threads) {
      launch.template operator()<F, kGroups>(dim3(static_cast<unsigned>(threads)));
    });
  });
}

// w is empty for Norm::Layer.
template <Norm kNorm>
void norm_forward(const Context& ctx, const Tensor& x, const Tensor& w, float eps, const codec::Quantized& keep_x,
                  const Tensor& rstd, const Tensor& n) {
  const codec::RowBlocks row = keep_x.kept() ? keep_x.row : codec::RowBlocks(x.cols());
  by_type(x.dtype, [&]<class T>() {
    NormForward<T> f{x.as<T>(), AnyNumbers(w), eps, View(keep_x), keep_x.kept(), rstd ? rstd.as<float>() : nullptr,
                     n.as<T>(), x.rows()};
    f.keep.row = codec::cuda::Row(row);
    with_format(keep_x.kept() ? keep_x.codec : NotKept::kCodec, row, [&]<class F, int kGroups>(dim3 threads) {
      agoq::cuda::launch(ctx, norm_forward_kernel<kNorm, F, T, kGroups>, row_ctas(ctx, x.rows(), threads), threads, f);
    });
  });
}

template <Norm kNorm>
void norm_again(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w,
                const Tensor& n) {
  by_type(n.dtype, [&]<class T>() {
    const NormAgain<T> a{View(kept_x), rstd.as<float>(), AnyNumbers(w), n.as<T>(), n.rows()};
    with_format(kept_x.codec, kept_x.row, [&]<class F, int kGroups>(dim3 threads) {
      agoq::cuda::launch(ctx, norm_again_kernel<kNorm, F, T, kGroups>, row_ctas(ctx, n.rows(), threads), threads, a);
    });
  });
}

// partial [slices, H] is written for Norm::Rms, and empty for Norm::Layer.
template <Norm kNorm>
void norm_backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                   const Tensor& w, const Tensor& residual, const Tensor& dx, const Tensor& partial) {
  by_type(dn.dtype, [&]<class T>() {
    const NormBackward<T> b{dn.as<T>(),
                            View(kept_x),
                            rstd.as<float>(),
                            AnyNumbers(w),
                            residual ? residual.as<T>() : nullptr,
                            dx.as<T>(),
                            partial ? partial.as<float>() : nullptr,
                            dn.rows()};
    with_format(kept_x.codec, kept_x.row, [&]<class F, int kGroups>(dim3 threads) {
      const dim3 ctas = partial ? dim3(static_cast<unsigned>(partial.rows())) : row_ctas(ctx, dn.rows(), threads);
      agoq::cuda::launch(ctx, norm_backward_kernel<kNorm, F, T, kGroups>, ctas, threads, b);
    });
  });
}

}  // namespace agoq::ops::cuda
