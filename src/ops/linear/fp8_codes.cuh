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

// What numbers are multiplied by: 0 stands for codes of zero, whatever the numbers are.
__device__ inline float reciprocal_of(float scale) {
  return scale > 0 ? 1.0f / scale : 0.0f;
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

  Fp8Format() = default;
  explicit Fp8Format(DType dtype) : e5m2(dtype == DType::E5M2) {}

  __device__ float scale_of(float amax) const {
    return to_float(e5m2 ? codec::scale_of<codec::OperandE5M2>(amax) : codec::scale_of<codec::OperandE4M3>(amax));
  }
  __device__ uint32_t pair(float first, float second) const {
    return e5m2 ? fp8_pair<codec::OperandE5M2>(first, second) : fp8_pair<codec::OperandE4M3>(first, second);
  }
  // x · inv; zeros if inv is 0.
  __device__ uint2 encode8(const codec::FloatVec8& x, float inv) const {
    if (!(inv > 0)) return {0, 0};
    const auto two = [&](int i) { return pair(x[i] * inv, x[i + 1] * inv); };
    return {two(0) | two(2) << 16, two(4) | two(6) << 16};
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

// Of two pairs of bf16 the larger magnitude in each half, a NaN if one is; the signs mean nothing.
__device__ inline uint32_t larger_magnitudes(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 860
  uint32_t most;
  asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
  return most;
#else
  const uint32_t x = a & 0x7fff7fffu, y = b & 0x7fff7fffu;  // a NaN is the largest integer
  return max(x & 0xffff0000u, y & 0xffff0000u) | max(x & 0xffffu, y & 0xffffu);
#endif
}
__device__ inline uint32_t larger_magnitudes(uint32_t most, const uint4& words) {
  return larger_magnitudes(larger_magnitudes(most, larger_magnitudes(words.x, words.y)),
                           larger_magnitudes(words.z, words.w));
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

// An operand with a scale per row for the kernel that makes its rows; or none. Rows have no padding.
struct Fp8Rows {
  uint8_t* codes = nullptr;
  float *scales = nullptr, *max_scale = nullptr;
  int64_t pitch = 0;
  Fp8Format format;

  Fp8Rows() = default;
  explicit Fp8Rows(const Operand& x)
      : codes(x.data.raw()),
        scales(x.scale.as<float>()),
        max_scale(x.max_scale.as<float>()),
        pitch(x.k()),
        format(x.dtype()) {}
  __device__ explicit operator bool() const { return codes != nullptr; }

  // Called by all threads that write the row, with its largest magnitude: what they multiply by. One of them, `first`,
  // notes the scale.
  __device__ float open(int64_t row, float amax, bool first) const {
    const float scale = format.scale_of(amax);
    if (first) {
      scales[row] = scale;
      raise(max_scale, scale);
    }
    return reciprocal_of(scale);
  }
  template <class Count>
  __device__ void store8(int64_t row, int col, Count n, const codec::FloatVec8& x, float inv) const {
    const uint2 words = format.encode8(x, inv);
    codec::cuda::store_bytes(codes + row * pitch + col, n, uint64_t{words.y} << 32 | words.x);
  }
};

}  // namespace agoq::ops::cuda
