// A norm again from what was kept, as the operand nᵀ of dW in 8-bit floats: one pass over the codes finds the largest
// number, a second writes tiles turned. What the first has read is mostly still in the L2 cache. Rows are even
// (RowBlocks::even), memory is aligned.
#pragma once

#include "ops/linear/fp8_tile.cuh"
#include "ops/norm/norm_rows.cuh"

namespace agoq::ops::cuda {

struct NormTurned {
  QuantRows kept;
  float share = 0;
  const float* rstd = nullptr;
  float* mean = nullptr;  // [rows] of NormKind::Layer: the first pass writes it
  FloatPtr w;
  float* scale = nullptr;  // [1], zero before the first pass
  Fp8Columns out;
};

// n of eight of a row's numbers, in place, rounded to bf16 as a tensor would have held them.
template <NormKind kNormKind, class Count>
__device__ inline void normalise(FloatVec8& x, Count n, float mean, float rstd, const FloatVec8& w) {
  if constexpr (kNormKind == NormKind::Layer) centre(x, n, mean);
  scale(x, rstd);
  if constexpr (kNormKind == NormKind::Rms) scale(x, w);
  round_to_bf16(x);
}

// An operand's x is e4m3 in every recipe.
using TurnedFormat = codec::OperandE4M3;
__device__ inline float turned_scale_of(float amax) {
  return to_float(codec::scale_of<TurnedFormat>(amax));
}

constexpr int kScaleThreads = 256, kScaleBlocks = kScaleThreads / kLanes, kScaleRows = 16, kAtOnce = 4;

// RMSNorm: a half-warp goes down the rows with a block, whose weights it keeps.
template <class F>
__global__ void __launch_bounds__(kScaleThreads) find_rms_scale(const __grid_constant__ PdlArgs<NormTurned> given) {
  const NormTurned& a = given.wait();
  const int block = static_cast<int>(blockIdx.x) * kScaleBlocks + static_cast<int>(threadIdx.x) / kLanes;
  const auto p = a.kept.row.place<F, AllOrNone>(block, static_cast<int>(threadIdx.x) % kLanes);
  const int begin = static_cast<int>(blockIdx.y) * kScaleRows, end = min(begin + kScaleRows, a.out.tokens);
  FloatVec8 w;
  a.w.load8(p.col, p.n, w);
  float amax = 0;
  for (int first = begin; first < end; first += kAtOnce) {
    codec::cuda::Fetched<F> fetched[kAtOnce];
    float rstd[kAtOnce];
#pragma unroll
    for (int t = 0; t < kAtOnce; ++t) {
      const int row = min(first + t, end - 1);
      fetched[t] = codec::cuda::fetch<F>(a.kept.at(row), p);
      rstd[t] = a.rstd[row];
    }
#pragma unroll
    for (int t = 0; t < kAtOnce; ++t) {
      FloatVec8 x;
      codec::cuda::decode<F>(fetched[t], x);
      normalise<NormKind::Rms>(x, p.n, 0.0f, rstd[t], w);
      amax = codec::cuda::greater_magnitude(amax, codec::cuda::group_amax(x));
    }
  }
  CtaMax cta_max;
  amax = cta_max(amax);
  if (threadIdx.x == 0) raise(a.scale, turned_scale_of(amax));
}

// LayerNorm: a warp has a row, whose mean it finds first.
template <class F>
__global__ void __launch_bounds__(kScaleThreads) find_layer_scale(const __grid_constant__ PdlArgs<NormTurned> given) {
  const NormTurned& a = given.wait();
  const int row = static_cast<int>(blockIdx.x) * (kScaleThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (row >= a.out.tokens) return;  // a whole warp
  const int lane = static_cast<int>(threadIdx.x) % kLanes, half = static_cast<int>(threadIdx.x) % kWarp / kLanes;
  const codec::cuda::RowLayout& shape = a.kept.row;
  const QuantPtr kept = a.kept.at(row);
  const auto each_block = [&](auto&& fn) {
#pragma unroll 4
    for (int block = half; block < shape.blocks; block += kWarp / kLanes) {
      const auto p = shape.place<F, AllOrNone>(block, lane);
      FloatVec8 x;
      codec::cuda::decode<F>(kept, p, x);
      fn(p, x);
    }
  };
  float sum = 0, amax = 0;
  each_block([&](const auto&, const FloatVec8& x) { sum = sum_of(x, sum); });
  const float mean = lane_sum(sum) * a.share;
  if (threadIdx.x % kWarp == 0) a.mean[row] = mean;
  each_block([&](const auto& p, FloatVec8& x) {
    normalise<NormKind::Layer>(x, p.n, mean, a.rstd[row], x);
    amax = codec::cuda::greater_magnitude(amax, codec::cuda::group_amax(x));
  });
  const unsigned most = __reduce_max_sync(kWholeWarp, __float_as_uint(amax));
  if (threadIdx.x % kWarp == 0) raise(a.scale, turned_scale_of(__uint_as_float(most)));
}

template <NormKind kNormKind, class F, bool kCounts>
__global__ void __launch_bounds__(TurnedTile::kThreads) turn_norm(const __grid_constant__ PdlArgs<NormTurned> given) {
  const NormTurned& a = given.wait();
  const int lane = static_cast<int>(threadIdx.x) % kLanes, block = static_cast<int>(blockIdx.y);
  const auto p = a.kept.row.place<F, AllOrNone>(block, lane);
  FloatVec8 w{};
  if constexpr (kNormKind == NormKind::Rms) a.w.load8(p.col, p.n, w);
  const float by = reciprocal_of(*a.scale);
  const FloatVec8 inv = {by, by, by, by, by, by, by, by};
  write_turned<TurnedFormat, kCounts>(a.out, inv, p.col - lane * kGroup, p.size,
                                      static_cast<int>(blockIdx.x) * TurnedTile::kTokens,
                                      [&](int token, int, FloatVec8(&x)[4]) {
                                        codec::cuda::Fetched<F> fetched[4];
                                        float rstd[4], mean[4] = {};
#pragma unroll
                                        for (int t = 0; t < 4; ++t) {
                                          const int row = min(token + t, a.out.tokens - 1);
                                          fetched[t] = codec::cuda::fetch<F>(a.kept.at(row), p);
                                          rstd[t] = a.rstd[row];
                                          if constexpr (kNormKind == NormKind::Layer) mean[t] = a.mean[row];
                                        }
#pragma unroll
                                        for (int t = 0; t < 4; ++t) {
                                          codec::cuda::decode<F>(fetched[t], x[t]);
                                          normalise<kNormKind>(x[t], p.n, mean[t], rstd[t], w);
                                        }
                                      });
}

// mean [rows] is scratch for Norm::Layer; out [H, tokens padded] has one scale.
template <NormKind kNormKind>
void recompute_norm_turned(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w,
                           const Tensor& mean, const Operand& out) {
  using codec::cuda::ceil_div;
  require(kept_x.rows <= int64_t{65535} * kScaleRows && QuantRows(kept_x).aligned() && FloatPtr(w).aligned(),
          "a norm of {} rows is not made again for dW in one kernel, or its memory is not aligned", kept_x.rows);
  const auto rows = static_cast<int>(kept_x.rows), blocks = static_cast<int>(kept_x.row.blocks());
  const NormTurned a{QuantRows(kept_x),    1.0f / static_cast<float>(kept_x.row.cols),
                     rstd.as<float>(),     mean ? mean.as<float>() : nullptr,
                     FloatPtr(w),          out.scale.as<float>(),
                     Fp8Columns(out, rows)};
  clear(ctx, out.scale);
  const auto ctas = [](int count, int each) { return static_cast<unsigned>(ceil_div(count, each)); };
  codec::dispatch(kept_x.codec, [&]<class F>() {
    if constexpr (kNormKind == NormKind::Rms)
      agoq::cuda::launch(ctx, find_rms_scale<F>, dim3(ctas(blocks, kScaleBlocks), ctas(rows, kScaleRows)),
                         dim3(kScaleThreads), a);
    else
      agoq::cuda::launch(ctx, find_layer_scale<F>, dim3(ctas(rows, kScaleThreads / kWarp)), dim3(kScaleThreads), a);
    // A tile is a block of the codes, which may be short.
    const auto kernel = counting_kernel(out, [&]<bool kCounts>() { return turn_norm<kNormKind, F, kCounts>; });
    agoq::cuda::launch(ctx, kernel, turned_grid(out.k(), blocks * codec::kBlock), dim3(TurnedTile::kThreads), a);
  });
}

}  // namespace agoq::ops::cuda
