// How kernels write operands in 8-bit floats (ops/linear/fp8.h): codes, scales, and rows that a kernel has just made.
#pragma once

#include "codec/block_cuda.cuh"
#include "ops/linear/operand.h"

namespace agoq::ops::cuda {

// --- codes and scales ------------------------------------------------------------------------------------------------

// Two numbers as codes, the first in the low byte.
template <class Format>
__device__ inline uint32_t fp8_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  if constexpr (Format::kMantissaBits == 3)
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  else
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return Format::encode(first) | Format::encode(second) << 8;
#endif
}

// What numbers are multiplied by: 0 stands for codes of zero, whatever the numbers are. Scales are powers of two.
__device__ inline float reciprocal_of(float scale) {
  return scale > 0 ? __uint_as_float((254u << 23) - __float_as_uint(scale)) : 0.0f;
}

// Magnitudes compare as integers, and a NaN is above all. Most do not raise the maximum; they read it and are done,
// since atomics on one address wait for each other.
__device__ inline void raise(float* amax, float magnitude) {
  auto* most = reinterpret_cast<unsigned*>(amax);
  if (__float_as_uint(magnitude) > __ldcg(most)) atomicMax(most, __float_as_uint(magnitude));
}

// The format of an operand's codes, for kernels that take either.
struct Fp8Format {
  bool e5m2 = false;

  constexpr Fp8Format() = default;
  constexpr explicit Fp8Format(DType dtype) : e5m2(dtype == DType::E5M2) {}

  __device__ float scale_of(float amax) const {
    return to_float(e5m2 ? codec::group_scale<codec::OperandE5M2>(amax) : codec::group_scale<codec::OperandE4M3>(amax));
  }
  __device__ uint32_t pair(float first, float second) const {
    return e5m2 ? fp8_pair<codec::OperandE5M2>(first, second) : fp8_pair<codec::OperandE4M3>(first, second);
  }
  __device__ float largest() const { return e5m2 ? codec::OperandE5M2::max() : codec::OperandE4M3::max(); }
  __device__ float least() const { return e5m2 ? codec::OperandE5M2::least() : codec::OperandE4M3::least(); }
  // x · inv; zeros if inv is 0.
  __device__ uint2 encode8(const codec::FloatVec8& x, float inv) const {
    if (!(inv > 0)) return {0, 0};
    const auto two = [&](int i) { return pair(x[i] * inv, x[i + 1] * inv); };
    return {two(0) | two(2) << 16, two(4) | two(6) << 16};
  }
};

// --- counts ----------------------------------------------------------------------------------------------------------

// Bit 7 of each of four codes that is zero.
__device__ inline uint32_t zero_codes(uint32_t codes) {
  return ~((codes & 0x7f7f7f7fu) + 0x7f7f7f7fu) & 0x80808080u;
}

// The kernel that writes x: counting takes registers and time, so where nobody counts another one runs.
// kernel.operator()<whether it counts>()
template <class Kernel>
auto counting_kernel(const Operand& x, const Kernel& kernel) {
  return x.counts ? kernel.template operator()<true>() : kernel.template operator()<false>();
}

// Where a kernel adds up its numbers that their codes do not hold (ops/linear/fp8_counts.h); or nowhere.
struct LostNumbers {
  unsigned long long* counts = nullptr;  // saturated, flushed

  LostNumbers() = default;
  explicit LostNumbers(const Operand& x)
      : counts(x.counts ? reinterpret_cast<unsigned long long*>(x.counts.as<int64_t>()) : nullptr) {}
  __device__ explicit operator bool() const { return counts != nullptr; }

  // One addition in memory for all threads of a warp that come here together.
  __device__ void add(uint32_t saturated, uint32_t flushed) const {
    constexpr uint32_t kBits = 16;
    const uint32_t together = __activemask(), both = __reduce_add_sync(together, saturated << kBits | flushed);
    if (threadIdx.x % 32 != static_cast<uint32_t>(__ffs(static_cast<int>(together))) - 1) return;
    if (const uint32_t sum = both >> kBits) atomicAdd(counts, sum);
    if (const uint32_t sum = both & ((1u << kBits) - 1)) atomicAdd(counts + 1, sum);
  }
  // Of eight numbers x[i] · inv(i); the codes of most eights hold them all.
  template <class Inverse>
  __device__ void add8(const Fp8Format& format, const codec::FloatVec8& x, const Inverse& inv) const {
    const float largest = format.largest(), least = 0.5f * format.least();
    float most = 0, smallest = largest;
#pragma unroll
    for (int i = 0; i < codec::cuda::kGroup; ++i) {
      most = fmaxf(most, fabsf(x[i] * inv(i)));
      smallest = fminf(smallest, fabsf(x[i] * inv(i)));
    }
    if (most <= largest && smallest > least) return;
    uint32_t saturated = 0, flushed = 0;
#pragma unroll
    for (int i = 0; i < codec::cuda::kGroup; ++i) {
      const float size = fabsf(x[i] * inv(i));
      saturated += size > largest;
      flushed += size <= least && x[i] != 0 && inv(i) > 0;
    }
    if (saturated | flushed) add(saturated, flushed);
  }
};

// --- rows ------------------------------------------------------------------------------------------------------------

// x in bf16, as a tensor of it would have held it.
__device__ inline uint4 bf16_words(const codec::FloatVec8& x) {
  using codec::cuda::pack_bf16;
  return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}
__device__ inline void round_to_bf16(codec::FloatVec8& x) {
  codec::cuda::unpack8(bf16_words(x), x);
}

using codec::cuda::larger_magnitudes;
__device__ inline uint32_t larger_magnitudes(uint32_t most, const uint4& words) {
  return larger_magnitudes(most, larger_magnitudes(words));
}
// The larger of the two.
__device__ inline float magnitude_of(uint32_t pair) {
  return codec::cuda::greater_magnitude(codec::cuda::low_bf16(pair), codec::cuda::high_bf16(pair));
}

// The largest magnitude of a CTA, in all its threads. Like CtaSum: two take turns in a loop.
class CtaMax {
 public:
  __device__ float operator()(float magnitude) {
    turn_ ^= 1;
    const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / kWarpSize;
    const unsigned most = __reduce_max_sync(codec::cuda::kWholeWarp, __float_as_uint(magnitude));
    if (thread % kWarpSize == 0) of_warps()[thread / kWarpSize] = most;
    __syncthreads();
    const int lane = thread % kWarpSize;
    return __uint_as_float(__reduce_max_sync(codec::cuda::kWholeWarp, lane < warps ? of_warps()[lane] : 0u));
  }

 private:
  static constexpr int kWarpSize = 32;
  __device__ unsigned* of_warps() const {
    __shared__ unsigned most[2][kWarpSize];
    return most[turn_];
  }
  int turn_ = 0;
};

// An operand with a scale per row for the kernel that makes its rows; or none.
struct Fp8Rows {
  uint8_t* codes = nullptr;
  float *scales = nullptr, *max_scale = nullptr;
  int64_t pitch = 0;
  Fp8Format format;
  LostNumbers lost;

  Fp8Rows() = default;
  explicit Fp8Rows(const Operand& x)
      : codes(x.data.raw()),
        scales(x.scale.as<float>()),
        max_scale(x.max_scale ? x.max_scale.as<float>() : nullptr),
        pitch(x.k()),
        format(x.dtype()),
        lost(x) {}
  __device__ explicit operator bool() const { return codes != nullptr; }

  // Called by all threads that write the row, with its largest magnitude: what they multiply by. One of them, `first`,
  // notes the scale.
  __device__ float open(int64_t row, float amax, bool first) const {
    const float scale = format.scale_of(amax);
    if (first) {
      scales[row] = scale;
      if (max_scale) raise(max_scale, scale);
    }
    return reciprocal_of(scale);
  }
  template <bool kCounts = false, class Count>
  __device__ void store8(int64_t row, int col, Count n, const codec::FloatVec8& x, float inv) const {
    // Numbers beyond a row mean nothing, and kernels leave what they like there.
    if (kCounts && lost && codec::cuda::any(n)) lost.add8(format, x, [&](int) { return inv; });
    const uint2 words = format.encode8(x, inv);
    codec::cuda::store_bytes(codes + row * pitch + col, n, uint64_t{words.y} << 32 | words.x);
  }
};

}  // namespace agoq::ops::cuda
