#include "codec/block_cuda.cuh"
#include "ops/by_type.h"
#include "ops/linear/fp8_cuda.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

constexpr int kThreads = 256;
// What a CTA takes: 128 of k of 64 rows of the operand; a thread has eight neighbours in memory at a time.
constexpr int kTileK = 128, kTileRows = 64;
constexpr int kWarp = 32;
static_assert(kTileK == kScaleBlock && kTileRows == 2 * kWarp);

// x and the operand for a kernel. x[row, i] is at row · row_stride + i · k_stride.
template <class T>
struct Fp8Source {
  const T* x;
  int rows, k, padded_k;
  int scale_row_stride, scale_k_stride;  // of the scale of [row, i], after the shifts
  int scale_row_shift, scale_k_shift;
  float* scales;
  uint8_t* codes;

  __device__ float* scale_of(int row, int i) const {
    return scales + (row >> scale_row_shift) * scale_row_stride + (i >> scale_k_shift) * scale_k_stride;
  }
};

constexpr int kAll = 31;  // a shift that makes every index zero
constexpr int kBlockShift = 7;
static_assert(1 << kBlockShift == kScaleBlock);

template <class T>
Fp8Source<T> source_of(const Tensor& x, int64_t k, const Operand& out) {
  Fp8Source<T> s{x.as<T>(), static_cast<int>(out.rows()), static_cast<int>(k), static_cast<int>(out.k()), 0, 0, kAll,
                 kAll,      out.scale.as<float>(),        out.data.raw()};
  switch (out.granularity) {
    case Granularity::Row:
      s.scale_row_stride = 1, s.scale_row_shift = 0;
      break;
    case Granularity::Block1x128:
      s.scale_row_stride = 1, s.scale_row_shift = 0;
      s.scale_k_stride = static_cast<int>(out.rows()), s.scale_k_shift = kBlockShift;
      break;
    case Granularity::Block128x128:
      s.scale_row_stride = static_cast<int>(out.scale.shape[1]), s.scale_row_shift = kBlockShift;
      s.scale_k_stride = 1, s.scale_k_shift = kBlockShift;
      break;
    default:
      break;
  }
  return s;
}

// Magnitudes compare as integers, and a NaN is above all. Most do not raise the maximum; they read it and are done,
// since atomics on one address wait for each other.
__device__ inline void raise(float* amax, float magnitude) {
  auto* most = reinterpret_cast<unsigned*>(amax);
  if (__float_as_uint(magnitude) > __ldcg(most)) atomicMax(most, __float_as_uint(magnitude));
}

// Two numbers as codes, the first in the low byte.
template <class Format>
__device__ inline uint32_t encode2(float first, float second) {
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
template <class Format>
__device__ inline uint2 encode8(const FloatVec8& x, float inv) {
  const auto pair = [&](int i) { return encode2<Format>(x[i] * inv, x[i + 1] * inv); };
  return {pair(0) | pair(2) << 16, pair(4) | pair(6) << 16};
}

// What numbers are multiplied by: 0 stands for codes of zero, whatever the numbers are.
__device__ inline float reciprocal_of(float scale) {
  return scale > 0 ? 1.0f / scale : 0.0f;
}
__device__ inline void clear_unless(float inv, FloatVec8& x) {
  if (inv > 0) return;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) x[i] = 0;
}

// --- k is the major of x: a half-warp has 128 of k of one row --------------------------------------------------------

struct SourceTile {
  int row, col, n;  // n: of the lane's eight numbers, those that exist
};
template <class T>
__device__ inline SourceTile source_tile(const Fp8Source<T>& s) {
  const int block = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  const int row = static_cast<int>(blockIdx.y) * (kThreads / kLanes) + block;
  const int col = static_cast<int>(blockIdx.x) * kTileK + lane * kGroup;
  return {row, col, row < s.rows ? min(max(s.k - col, 0), kGroup) : 0};
}

template <class T>
__global__ void __launch_bounds__(kThreads) row_amax(const __grid_constant__ PdlArgs<Fp8Source<T>> given) {
  const Fp8Source<T>& s = given.wait();
  const SourceTile t = source_tile(s);
  FloatVec8 x;
  load8(s.x + int64_t{t.row} * s.k + t.col, t.n, x);
  const float amax = block_amax(x);
  const bool first = threadIdx.x % kLanes == 0 && t.row < s.rows;
  if (s.scale_row_shift == 0) {
    if (first) raise(s.scale_of(t.row, t.col), amax);
    return;
  }
  // The rows of a CTA share a scale: 128 is a multiple of them.
  __shared__ unsigned most;
  if (threadIdx.x == 0) most = 0;
  __syncthreads();
  if (first) atomicMax(&most, __float_as_uint(amax));
  __syncthreads();
  if (threadIdx.x == 0) raise(s.scale_of(t.row, t.col), __uint_as_float(most));
}

template <class Format, class T>
__global__ void __launch_bounds__(kThreads) row_encode(const __grid_constant__ PdlArgs<Fp8Source<T>> given) {
  const Fp8Source<T>& s = given.wait();
  const SourceTile t = source_tile(s);
  if (t.row >= s.rows || t.col >= s.padded_k) return;
  FloatVec8 x;
  load8(s.x + int64_t{t.row} * s.k + t.col, t.n, x);
  const float inv = reciprocal_of(*s.scale_of(t.row, t.col));
  clear_unless(inv, x);
  *reinterpret_cast<uint2*>(s.codes + int64_t{t.row} * s.padded_k + t.col) = encode8<Format>(x, inv);
}

// --- the row is the major of x: tiles are turned in shared memory ----------------------------------------------------

// A thread's eight rows, and the first of the numbers along k that it has of them, every kPassK.
constexpr int kThreadsAcross = kTileRows / kGroup, kPassK = kThreads / kThreadsAcross;
struct ColumnTile {
  int row, k, n;  // of x [k, rows]: its column, its row
};
template <class T>
__device__ inline ColumnTile column_tile(const Fp8Source<T>& s) {
  const int row = static_cast<int>(blockIdx.y) * kTileRows + static_cast<int>(threadIdx.x) % kThreadsAcross * kGroup;
  return {row, static_cast<int>(blockIdx.x) * kTileK + static_cast<int>(threadIdx.x) / kThreadsAcross,
          min(max(s.rows - row, 0), kGroup)};
}

template <class T>
__global__ void __launch_bounds__(kThreads) column_amax(const __grid_constant__ PdlArgs<Fp8Source<T>> given) {
  const Fp8Source<T>& s = given.wait();
  __shared__ unsigned most[kTileRows];
  if (threadIdx.x < kTileRows) most[threadIdx.x] = 0;
  __syncthreads();
  const ColumnTile t = column_tile(s);
  FloatVec8 amax{};
#pragma unroll
  for (int pass = 0; pass < kTileK; pass += kPassK) {
    FloatVec8 x;
    const int k = t.k + pass;
    load8(s.x + int64_t{k} * s.rows + t.row, k < s.k ? t.n : 0, x);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) amax[i] = greater_magnitude(amax[i], x[i]);
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    atomicMax(most + threadIdx.x % kThreadsAcross * kGroup + i, __float_as_uint(amax[i]));
  __syncthreads();
  const int row = static_cast<int>(blockIdx.y) * kTileRows + static_cast<int>(threadIdx.x);
  if (s.scale_row_shift > 0) {  // the rows of a CTA share a scale
    if (threadIdx.x < kWarp) most[0] = __reduce_max_sync(kWholeWarp, max(most[threadIdx.x], most[threadIdx.x + kWarp]));
    if (threadIdx.x > 0) return;
  }
  if (threadIdx.x < kTileRows && row < s.rows)
    raise(s.scale_of(row, static_cast<int>(blockIdx.x) * kTileK), __uint_as_float(most[threadIdx.x]));
}

template <class Format, class T>
__global__ void __launch_bounds__(kThreads) column_encode(const __grid_constant__ PdlArgs<Fp8Source<T>> given) {
  const Fp8Source<T>& s = given.wait();
  // A row of the operand's tile; four bytes more than 128 put neighbouring rows into different banks.
  constexpr int kPitch = kTileK + 4;
  __shared__ uint8_t turned[kTileRows * kPitch];
  const ColumnTile t = column_tile(s);
  float inv[kGroup];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) inv[i] = i < t.n ? reciprocal_of(*s.scale_of(t.row + i, t.k)) : 0.0f;
#pragma unroll
  for (int pass = 0; pass < kTileK; pass += kPassK) {
    FloatVec8 x;
    const int k = t.k + pass;
    load8(s.x + int64_t{k} * s.rows + t.row, k < s.k ? t.n : 0, x);
    uint8_t* column = turned + threadIdx.x % kThreadsAcross * kGroup * kPitch + threadIdx.x / kThreadsAcross + pass;
#pragma unroll
    for (int i = 0; i < kGroup; i += 2) {
      const float first = inv[i] > 0 ? x[i] * inv[i] : 0.0f, second = inv[i + 1] > 0 ? x[i + 1] * inv[i + 1] : 0.0f;
      const uint32_t pair = encode2<Format>(first, second);
      column[i * kPitch] = static_cast<uint8_t>(pair);
      column[(i + 1) * kPitch] = static_cast<uint8_t>(pair >> 8);
    }
  }
  __syncthreads();
  constexpr int kWord = 4, kWords = kTileK / kWord;
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kWords; i += kThreads) {
    const int r = i / kWords, c = i % kWords * kWord;
    const int row = static_cast<int>(blockIdx.y) * kTileRows + r, col = static_cast<int>(blockIdx.x) * kTileK + c;
    if (row < s.rows && col < s.padded_k)
      *reinterpret_cast<uint32_t*>(s.codes + int64_t{row} * s.padded_k + col) =
          *reinterpret_cast<const uint32_t*>(turned + r * kPitch + c);
  }
}

// --- scales
// -----------------------------------------------------------------------------------------------------------

template <class Format>
__global__ void __launch_bounds__(kThreads) amax_to_scale(float* scales, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) scales[i] = to_float(codec::scale_of<Format>(scales[i]));
}

unsigned ctas(int64_t n, int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

template <class Format, class T>
void encode(const Context& ctx, const Tensor& x, Major x_major, const Operand& out) {
  const bool k_major = x_major == Major::K;
  const Fp8Source<T> s = source_of<T>(x, x.shape[k_major ? 1 : 0], out);
  const dim3 grid(ctas(s.padded_k, kTileK), ctas(s.rows, k_major ? kThreads / kLanes : kTileRows));
  const int64_t scales = out.scale.count();
  AGOQ_CUDA_CHECK(cudaMemsetAsync(s.scales, 0, out.scale.bytes(), agoq::cuda::stream(ctx)));
  agoq::cuda::launch(ctx, k_major ? row_amax<T> : column_amax<T>, grid, kThreads, s);
  agoq::cuda::launch(ctx, amax_to_scale<Format>, ctas(scales, kThreads), kThreads, s.scales, scales);
  agoq::cuda::launch(ctx, k_major ? row_encode<Format, T> : column_encode<Format, T>, grid, kThreads, s);
}

}  // namespace

void to_fp8(const Context& ctx, const Tensor& x, Major x_major, const Operand& out) {
  require(out.rows() <= int64_t{65535} * (kThreads / kLanes), "an operand of {} rows is too large for one kernel",
          out.rows());
  by_type(x.dtype, [&]<class T>() {
    if (out.dtype() == DType::E4M3) return encode<codec::OperandE4M3, T>(ctx, x, x_major, out);
    encode<codec::OperandE5M2, T>(ctx, x, x_major, out);
  });
}

}  // namespace agoq::ops::cuda
