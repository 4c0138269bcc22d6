// What the kernels of norms share: a thread's eight numbers, sums over threads, and what forward, again and backward
// are given.
#pragma once

#include "codec/block_cuda.cuh"
#include "ops/linear/fp8_codes.cuh"

namespace agoq::ops::cuda {

using codec::cuda::AllOrNone;
using codec::cuda::fetch8;
using codec::cuda::Fetched8;
using codec::cuda::FloatVec8;
using codec::cuda::kGroup;
using codec::cuda::kLanes;
using codec::cuda::kWholeWarp;
using codec::cuda::LaneTile;
using codec::cuda::PdlArgs;
using codec::cuda::QuantPtr;
using codec::cuda::QuantRows;
using codec::cuda::store8;
using codec::cuda::unpack8;
using codec::cuda::WholeLaneTile;

inline constexpr int kWarp = 32;

// Rms: n = x·rstd·w. Layer: n = (x - mean)·rstd; its mean is that of x as it was kept, and is never stored.
enum class NormKind { Rms, Layer };

// --- a thread's eight numbers ----------------------------------------------------------------------------------------

__device__ inline float sum_of(const FloatVec8& x, float sum = 0) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) sum += x[i];
  return sum;
}

__device__ inline float sum_of_squares(const FloatVec8& x, float sum = 0) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) sum = fmaf(x[i], x[i], sum);
  return sum;
}

__device__ inline float sum_of_products(const FloatVec8& a, const FloatVec8& b, float sum = 0) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) sum = fmaf(a[i], b[i], sum);
  return sum;
}

__device__ inline float rstd_of(float mean_square, float eps) {
  return rsqrtf(mean_square + eps);
}

__device__ inline void scale(FloatVec8& x, const FloatVec8& by) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) x[i] *= by[i];
}
__device__ inline void scale(FloatVec8& x, float by) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) x[i] *= by;
}

__device__ inline void add(FloatVec8& x, const FloatVec8& y) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) x[i] += y[i];
}

// The first n of x minus their row's mean; zeros behind them stay.
__device__ inline void centre(FloatVec8& x, int n, float mean) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) x[i] = i < n ? x[i] - mean : 0.0f;
}
__device__ inline void centre(FloatVec8& x, AllOrNone n, float mean) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) x[i] = n.all ? x[i] - mean : 0.0f;
}

// dw += dn·x̂
__device__ inline void add_products(const FloatVec8& dn, const FloatVec8& hat, FloatVec8& dw) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) dw[i] = fmaf(dn[i], hat[i], dw[i]);
}

// dx = rstd·(g - mean(g) - x̂·mean(g·x̂)), in place of g.
__device__ inline void differentiate(FloatVec8& g, const FloatVec8& hat, float rstd, float mean, float mean_product) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) g[i] = rstd * fmaf(-hat[i], mean_product, g[i] - mean);
}

// --- sums over threads ----------------------------------------------------------------------------------------------

// The sum over `kOver` neighbouring lanes, in all of them. Called by whole warps.
template <int kOver = kWarp>
__device__ inline float lane_sum(float x) {
#pragma unroll
  for (int other = kOver / 2; other > 0; other /= 2) x += __shfl_xor_sync(kWholeWarp, x, other);
  return x;
}

// The sum over the CTA, in all its threads, in an order that its size alone decides: in two steps, so that other work
// can hide what the first takes. Two sums take turns in a loop, so that one barrier for each is enough.
class CtaSum {
 public:
  __device__ void give(float x) {
    turn_ ^= 1;
    x = lane_sum(x);
    if (threadIdx.x % kWarp == 0) sums()[threadIdx.x / kWarp] = x;
  }
  __device__ float take() const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
    __syncthreads();
    return lane_sum(lane < warps ? sums()[lane] : 0.0f);
  }
  __device__ float operator()(float x) {
    give(x);
    return take();
  }

 private:
  __device__ float* sums() const {  // of the warps
    __shared__ float sums[2][kWarp];
    return sums[turn_];
  }
  int turn_ = 0;
};

// --- what is given --------------------------------------------------------------------------------------------------

// Numbers that are bf16 or fp32, whichever the tensor is. May be none.
struct FloatPtr {
  void* data = nullptr;
  bool bf16 = false;

  FloatPtr() = default;
  explicit FloatPtr(const Tensor& t) : data(t.data), bf16(t.dtype == DType::BF16) {}
  __device__ explicit operator bool() const { return data != nullptr; }
  bool aligned() const { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }
  template <class T>
  __device__ T* as() const {
    return static_cast<T*>(data);
  }
  template <class Count>
  __device__ void load8(int64_t first, Count n, FloatVec8& x) const {
    if (bf16)
      codec::cuda::load8(as<Bf16>() + first, n, x);
    else
      codec::cuda::load8(as<float>() + first, n, x);
  }
  __device__ void store8(int64_t first, int n, const FloatVec8& x) const {
    if (bf16)
      codec::cuda::store8(as<Bf16>() + first, n, x);
    else
      codec::cuda::store8(as<float>() + first, n, x);
  }
};

// The format of an x that forward does not keep.
struct NotKept {};

// The rows of a kernel whose CTAs take them in turn, and how far it is from a row of a CTA to its next one.
struct RowChunk {
  int count = 0, step = 0;
  int64_t numbers = 0, bytes = 0, blocks = 0;  // a step in numbers, in bytes of their codes, and in scales

  RowChunk() = default;
  RowChunk(int64_t rows, dim3 ctas, const QuantRows& kept)
      : count(static_cast<int>(rows)),
        step(static_cast<int>(ctas.x)),
        numbers(int64_t{ctas.x} * kept.row.cols),
        bytes(ctas.x * kept.row_bytes),
        blocks(int64_t{ctas.x} * kept.row.blocks) {}
};

struct NormForward {
  FloatPtr x, w;  // [rows, H]; [H] for Norm::Rms
  float eps = 0;
  float share = 0;        // of a number in a mean, 1 / H
  QuantRows keep;         // its row is that of x even if nothing is kept
  float* rstd = nullptr;  // or none
  FloatPtr n;             // or in 8-bit floats:
  Fp8Rows fp8;
  RowChunk rows;
};

struct NormRecompute {
  QuantRows kept;
  float share = 0;
  const float* rstd = nullptr;
  FloatPtr w, n;
  RowChunk rows;
};

struct NormBackward {
  FloatPtr dn;
  QuantRows kept;
  float share = 0;
  const float* rstd = nullptr;
  FloatPtr w;
  FloatPtr residual;         // or none
  FloatPtr dx;               // may be the residual
  Fp8Rows fp8;               // or none: dx once more
  float* partial = nullptr;  // [CTAs, H] for Norm::Rms
  int64_t rows = 0;
};

// The rows of one CTA where each has a slice of them.
struct CtaRows {
  int begin, end;

  __device__ explicit CtaRows(int64_t rows)
      : begin(static_cast<int>(rows * blockIdx.x / gridDim.x)),
        end(static_cast<int>(rows * (blockIdx.x + 1) / gridDim.x)) {}
};

}  // namespace agoq::ops::cuda
