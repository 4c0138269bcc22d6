// Norms over rows of any length and alignment, of bf16 or fp32 numbers: right, not fast. A CTA goes over a row once for
// every sum that it needs, and once more to finish it.
#pragma once

#include <type_traits>

#include "ops/norm/norm_rows.cuh"

namespace agoq::ops::cuda {

inline constexpr int kAnyThreads = 256;

// Calls fn(place) for the thread's groups of a row in turn: half-warps take the blocks in turn.
template <class F, class Fn>
__device__ inline void each_group(const codec::cuda::RowLayout& row, Fn&& fn) {
  const auto thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int first = 0; first < row.blocks; first += kAnyThreads / kLanes)  // whole warps
    fn(row.place<F>(first + thread / kLanes, thread % kLanes));
}

// The sum of fn(place) over a row.
template <class F, class Fn>
__device__ inline float row_sum(CtaSum& cta_sum, const codec::cuda::RowLayout& row, Fn&& fn) {
  float sum = 0;
  each_group<F>(row, [&](const LaneTile& p) { sum += fn(p); });
  return cta_sum(sum);
}

template <NormKind kNormKind, class F>
__global__ void __launch_bounds__(kAnyThreads)
    norm_any_forward_kernel(const __grid_constant__ PdlArgs<NormForward> given) {
  const NormForward& f = given.wait();
  constexpr bool kCentred = kNormKind == NormKind::Layer, kKeeps = !std::is_same_v<F, NotKept>;
  using Format = std::conditional_t<kKeeps, F, codec::Fp32>;  // only places follow from it if nothing is kept
  const codec::cuda::RowLayout& shape = f.keep.row;
  CtaSum cta_sum;
  CtaMax cta_max;
  for (int64_t row = blockIdx.x; row < f.rows.count; row += f.rows.step) {
    const int64_t first = row * shape.cols;
    float mean = 0, squares = row_sum<Format>(cta_sum, shape, [&](const LaneTile&p) {
                      FloatVec8 x;
                      f.x.load8(first + p.col, p.n, x);
                      if constexpr (kKeeps) codec::cuda::encode<F>(f.keep.at(row), p, x, codec::Nearest{});
                      return kCentred ? sum_of(x) : sum_of_squares(x);
                    });
    if constexpr (kCentred) {
      mean = squares * f.share;
      squares = row_sum<Format>(cta_sum, shape, [&](const LaneTile& p) {
        FloatVec8 x;
        f.x.load8(first + p.col, p.n, x);
        centre(x, p.n, mean);
        return sum_of_squares(x);
      });
    }
    const float rstd = rstd_of(squares * f.share, f.eps);
    if (f.rstd && threadIdx.x == 0) f.rstd[row] = rstd;
    const auto load_n = [&](const LaneTile& p, FloatVec8& x) {
      FloatVec8 w;
      f.x.load8(first + p.col, p.n, x);
      if constexpr (kCentred) centre(x, p.n, mean);
      scale(x, rstd);
      if constexpr (!kCentred) f.w.load8(p.col, p.n, w);
      if constexpr (!kCentred) scale(x, w);
      if (f.fp8) round_to_bf16(x);
    };
    float amax = 0;
    if (f.fp8)
      each_group<Format>(shape, [&](const LaneTile& p) {
        FloatVec8 x;
        load_n(p, x);
        amax = codec::cuda::greater_magnitude(amax, codec::cuda::group_amax(x));
      });
    const float inv = f.fp8 ? f.fp8.open(row, cta_max(amax), threadIdx.x == 0) : 0.0f;
    each_group<Format>(shape, [&](const LaneTile& p) {
      FloatVec8 x;
      load_n(p, x);
      f.fp8 ? f.fp8.store8<true>(row, p.col, p.n, x, inv) : f.n.store8(first + p.col, p.n, x);
    });
  }
}

template <NormKind kNormKind, class F>
__global__ void __launch_bounds__(kAnyThreads)
    recompute_norm_any_kernel(const __grid_constant__ PdlArgs<NormRecompute> given) {
  const NormRecompute& a = given.wait();
  constexpr bool kCentred = kNormKind == NormKind::Layer;
  const codec::cuda::RowLayout& shape = a.kept.row;
  CtaSum cta_sum;
  for (int64_t row = blockIdx.x; row < a.rows.count; row += a.rows.step) {
    float mean = 0;
    if constexpr (kCentred)
      mean = a.share * row_sum<F>(cta_sum, shape, [&](const LaneTile& p) {
               FloatVec8 x;
               codec::cuda::decode<F>(a.kept.at(row), p, x);
               return sum_of(x);
             });
    each_group<F>(shape, [&](const LaneTile& p) {
      FloatVec8 x, w;
      codec::cuda::decode<F>(a.kept.at(row), p, x);
      if constexpr (kCentred) centre(x, p.n, mean);
      scale(x, a.rstd[row]);
      if constexpr (!kCentred) a.w.load8(p.col, p.n, w);
      if constexpr (!kCentred) scale(x, w);
      a.n.store8(row * shape.cols + p.col, p.n, x);
    });
  }
}

// The largest magnitude of the first n numbers as bf16 holds them.
__device__ inline float stored_amax(const FloatVec8& x, int n) {
  FloatVec8 stored;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) stored[i] = i < n ? x[i] : 0.0f;
  round_to_bf16(stored);
  return codec::cuda::group_amax(stored);
}

// One CTA, one slice of the rows. Its sums for dw grow where they lie, each touched by one thread alone.
template <NormKind kNormKind, class F>
__global__ void __launch_bounds__(kAnyThreads)
    norm_any_backward_kernel(const __grid_constant__ PdlArgs<NormBackward> given) {
  const NormBackward& b = given.wait();
  constexpr bool kCentred = kNormKind == NormKind::Layer;
  const codec::cuda::RowLayout& shape = b.kept.row;
  const CtaRows slice(b.rows);
  CtaSum cta_sum;
  CtaMax cta_max;
  for (int64_t row = slice.begin; row < slice.end; ++row) {
    const int64_t first = row * shape.cols;
    const float rstd = b.rstd[row];
    float mean = 0, mean_dn = 0;
    const auto load_hat = [&](const LaneTile& p, FloatVec8& hat) {
      codec::cuda::decode<F>(b.kept.at(row), p, hat);
      if constexpr (kCentred) centre(hat, p.n, mean);
      scale(hat, rstd);
    };
    const auto load_dn = [&](const LaneTile& p, FloatVec8& dn) { b.dn.load8(first + p.col, p.n, dn); };
    if constexpr (kCentred) {
      mean = b.share * row_sum<F>(cta_sum, shape, [&](const LaneTile& p) {
               FloatVec8 x;
               codec::cuda::decode<F>(b.kept.at(row), p, x);
               return sum_of(x);
             });
      mean_dn = b.share * row_sum<F>(cta_sum, shape, [&](const LaneTile& p) {
                  FloatVec8 dn;
                  load_dn(p, dn);
                  return sum_of(dn);
                });
    }
    const float mean_product = b.share * row_sum<F>(cta_sum, shape, [&](const LaneTile& p) {
                                 FloatVec8 hat, grad, w;
                                 load_hat(p, hat);
                                 load_dn(p, grad);
                                 if constexpr (!kCentred) b.w.load8(p.col, p.n, w);
                                 if constexpr (!kCentred) scale(grad, w);
                                 return sum_of_products(grad, hat);
                               });
    float amax = 0;
    each_group<F>(shape, [&](const LaneTile& p) {
      FloatVec8 hat, grad, other;
      load_hat(p, hat);
      load_dn(p, grad);
      if constexpr (!kCentred) {
        float* sums = b.partial + int64_t{blockIdx.x} * shape.cols + p.col;
        codec::cuda::load8(sums, row > slice.begin ? p.n : 0, other);
        add_products(grad, hat, other);
        store8(sums, p.n, other);
        b.w.load8(p.col, p.n, other);
        scale(grad, other);
      }
      differentiate(grad, hat, rstd, mean_dn, mean_product);
      if (b.residual) {
        b.residual.load8(first + p.col, p.n, other);
        add(grad, other);
      }
      b.dx.store8(first + p.col, p.n, grad);
      if (b.fp8) amax = codec::cuda::greater_magnitude(amax, stored_amax(grad, p.n));
    });
    if (!b.fp8) continue;
    const float inv = b.fp8.open(row, cta_max(amax), threadIdx.x == 0);
    each_group<F>(shape, [&](const LaneTile& p) {  // a thread reads what it has written itself
      FloatVec8 grad;
      b.dx.load8(first + p.col, p.n, grad);
      b.fp8.store8<true>(row, p.col, p.n, grad, inv);
    });
  }
}

}  // namespace agoq::ops::cuda
