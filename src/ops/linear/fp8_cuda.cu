#include <limits>

#include "ops/by_type.h"
#include "ops/linear/fp8_cuda.h"
#include "ops/linear/fp8_tile.cuh"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

constexpr int kThreads = 256;
static_assert(kThreads == TurnedTile::kThreads);
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
  Fp8Format format;
  LostNumbers lost;
  float* amax = nullptr;  // of a site, to be raised

  __device__ float* scale_of(int row, int i) const {
    return scales + (row >> scale_row_shift) * scale_row_stride + (i >> scale_k_shift) * scale_k_stride;
  }
};

constexpr int kAll = 31;  // a shift that makes every index zero
constexpr int kBlockShift = 7;
static_assert(1 << kBlockShift == kScaleBlock);

template <class T>
Fp8Source<T> source_of(const Tensor& x, int64_t k, const Operand& out) {
  Fp8Source<T> s{x.as<T>(),
                 static_cast<int>(out.rows()),
                 static_cast<int>(k),
                 static_cast<int>(out.k()),
                 0,
                 0,
                 kAll,
                 kAll,
                 out.scale.as<float>(),
                 out.data.raw(),
                 Fp8Format(out.dtype()),
                 LostNumbers(out)};
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

// A CTA has seen so large a magnitude of a site. Products show a number that is not finite.
__device__ inline void note(float* amax, float* scale, float magnitude) {
  CtaMax cta_max;
  magnitude = cta_max(magnitude);
  if (threadIdx.x > 0) return;
  raise(amax, magnitude);
  if (!(magnitude <= std::numeric_limits<float>::max())) *scale = std::numeric_limits<float>::quiet_NaN();
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

template <class T>
__global__ void __launch_bounds__(kThreads) row_encode(const __grid_constant__ PdlArgs<Fp8Source<T>> given) {
  const Fp8Source<T>& s = given.wait();
  const SourceTile t = source_tile(s);
  const bool outside = t.row >= s.rows || t.col >= s.padded_k;
  if (outside && !s.amax) return;
  FloatVec8 x;
  load8(s.x + int64_t{t.row} * s.k + t.col, t.n, x);
  const float inv = reciprocal_of(*s.scale_of(t.row, t.col));
  if (s.amax) note(s.amax, s.scales, group_amax(x));
  if (outside) return;
  if (s.lost) s.lost.add8(s.format, x, [&](int) { return inv; });
  *reinterpret_cast<uint2*>(s.codes + int64_t{t.row} * s.padded_k + t.col) = s.format.encode8(x, inv);
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

template <class Format, class T, bool kCounts>
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
    if constexpr (kCounts) s.lost.add8(s.format, x, [&](int i) { return inv[i]; });
    uint8_t* column = turned + threadIdx.x % kThreadsAcross * kGroup * kPitch + threadIdx.x / kThreadsAcross + pass;
#pragma unroll
    for (int i = 0; i < kGroup; i += 2) {
      const float first = inv[i] > 0 ? x[i] * inv[i] : 0.0f, second = inv[i + 1] > 0 ? x[i + 1] * inv[i + 1] : 0.0f;
      const uint32_t pair = fp8_pair<Format>(first, second);
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

// The largest magnitude of a thread's numbers.
template <int kCount>
__device__ inline float largest_of(const uint4 (&held)[kCount]) {
  uint32_t most = 0;
#pragma unroll
  for (int g = 0; g < kCount; ++g) most = larger_magnitudes(most, held[g]);
  return magnitude_of(most);
}
template <int kCount>
__device__ inline float largest_of(const Float8 (&held)[kCount]) {
  float amax = 0;
#pragma unroll
  for (int g = 0; g < kCount; ++g) {
    FloatVec8 x;
    unpack8(held[g], x);
    amax = greater_magnitude(amax, group_amax(x));
  }
  return amax;
}

// --- one scale for all: its maximum is found in one sweep -----------------------------------------------------------

template <class T>
struct Sweep {
  const T* x;
  int64_t count;
  float* amax;
};
constexpr int kSweepCtas = 8;  // of a multiprocessor
constexpr int kInFlight = 4;   // groups of eight that a thread asks for at once

template <class T>
__global__ void __launch_bounds__(kThreads) whole_amax(const __grid_constant__ PdlArgs<Sweep<T>> given) {
  const Sweep<T>& s = given.wait();
  const int64_t step = int64_t{gridDim.x} * kThreads * kGroup;
  float amax = 0;
  for (int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kGroup; at < s.count; at += kInFlight * step) {
    Fetched8<T> held[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int64_t from = at + j * step;
      held[j] = fetch8(s.x + from, static_cast<int>(min(max(s.count - from, int64_t{0}), int64_t{kGroup})));
    }
    amax = greater_magnitude(amax, largest_of(held));
  }
  CtaMax cta_max;
  amax = cta_max(amax);
  if (threadIdx.x == 0) raise(s.amax, amax);
}

// --- a scale per row: a CTA holds one in its registers --------------------------------------------------------------

template <class T>
struct RowSource {
  const T* x;
  int k;
  Fp8Rows out;
};

constexpr int kMostRowGroups = 8;  // of eight numbers, that a thread holds
static_assert(kMostHeldRow == int64_t{kThreads} * kMostRowGroups * kGroup);
constexpr int kRowCtas = 4;  // of a multiprocessor, at least

template <class T, int kGroups, bool kCounts>
__global__ void __launch_bounds__(kThreads, kRowCtas) encode_rows(const __grid_constant__ PdlArgs<RowSource<T>> given) {
  const RowSource<T>& s = given.wait();
  const int64_t row = blockIdx.x;
  const auto col = [](int g) { return static_cast<int>(g * blockDim.x + threadIdx.x) * kGroup; };
  Fetched8<T> held[kGroups];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) held[g] = fetch8(s.x + row * s.k + col(g), min(max(s.k - col(g), 0), kGroup));
  CtaMax cta_max;
  const float inv = s.out.open(row, cta_max(largest_of(held)), threadIdx.x == 0);
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    FloatVec8 x;
    unpack8(held[g], x);
    if (col(g) < s.out.pitch) s.out.store8<kCounts>(row, col(g), AllOrNone{true}, x, inv);
  }
}

// --- a weight: a scale per row, and the scales of its transpose -----------------------------------------------------

// The larger magnitudes of two groups of eight; signs mean nothing in bf16.
__device__ inline void keep_larger(uint4& most, const uint4& x) {
  most = make_uint4(larger_magnitudes(most.x, x.x), larger_magnitudes(most.y, x.y), larger_magnitudes(most.z, x.z),
                    larger_magnitudes(most.w, x.w));
}
__device__ inline void keep_larger(Float8& most, const Float8& x) {
  FloatVec8 a, b;
  unpack8(most, a);
  unpack8(x, b);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) a[i] = greater_magnitude(a[i], b[i]);
  most = {make_float4(a[0], a[1], a[2], a[3]), make_float4(a[4], a[5], a[6], a[7])};
}

template <class T>
struct WeightRows {
  const T* w;
  int rows, cols;
  Fp8Rows out;
  Bf16* column_scales;  // [CTAs, pitch of a row]: of the rows that each CTA goes down
  int cta_rows;
};

template <class T, int kGroups, bool kCounts>
__global__ void __launch_bounds__(kThreads, kGroups <= 2 ? kRowCtas : 2)
    encode_weight(const __grid_constant__ PdlArgs<WeightRows<T>> given) {
  const WeightRows<T>& s = given.wait();
  const int begin = static_cast<int>(blockIdx.x) * s.cta_rows, end = min(begin + s.cta_rows, s.rows);
  const auto col = [](int g) { return static_cast<int>(g * blockDim.x + threadIdx.x) * kGroup; };
  Fetched8<T> held[kGroups], next[kGroups], most[kGroups] = {};
  const auto fetch_row = [&](int row, Fetched8<T>(&to)[kGroups]) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      to[g] = fetch8(s.w + int64_t{row} * s.cols + col(g), min(max(s.cols - col(g), 0), kGroup));
  };
  fetch_row(begin, next);
  CtaMax cta_max;
  for (int row = begin; row < end; ++row) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) held[g] = next[g];
    if (row + 1 < end) fetch_row(row + 1, next);
    const float inv = s.out.open(row, cta_max(largest_of(held)), threadIdx.x == 0);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      keep_larger(most[g], held[g]);
      FloatVec8 x;
      unpack8(held[g], x);
      if (col(g) < s.out.pitch) s.out.store8<kCounts>(row, col(g), AllOrNone{true}, x, inv);
    }
  }
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    FloatVec8 amax;
    unpack8(most[g], amax);
    const auto scale_bits = [&](int i) { return __float_as_uint(s.out.format.scale_of(fabsf(amax[i]))); };
    // Scales are exact in bf16.
    const auto two = [&](int i) { return codec::bytes_of(scale_bits(i), scale_bits(i + 1), 0x7632u); };
    if (col(g) < s.out.pitch)
      put8(s.column_scales + int64_t{blockIdx.x} * s.out.pitch + col(g), AllOrNone{true},
           make_uint4(two(0), two(2), two(4), two(6)));
  }
}

struct ColumnScales {
  const Bf16* of_ctas;  // [ctas, pitch]
  int ctas, cols;
  int64_t pitch;
  float* scales;  // [cols]
};
constexpr int kJoinLanes = 8;  // threads across, of eight columns each: 128 bytes
constexpr int kJoinRows = kThreads / kJoinLanes;

// The larger of two pairs; scales are never negative, so they compare as integers.
__device__ inline void keep_larger_scales(uint4& most, const uint4& x) {
  most = make_uint4(__vmaxu2(most.x, x.x), __vmaxu2(most.y, x.y), __vmaxu2(most.z, x.z), __vmaxu2(most.w, x.w));
}

// The largest scale that a CTA has for a column. (Raised by atomics instead, all CTAs come at once: two fifths of the
// time of a weight's cast.)
__global__ void __launch_bounds__(kThreads) join_column_scales(const __grid_constant__ PdlArgs<ColumnScales> given) {
  const ColumnScales& s = given.wait();
  __shared__ uint4 of_rows[kJoinRows][kJoinLanes];
  const int lane = static_cast<int>(threadIdx.x) % kJoinLanes, row = static_cast<int>(threadIdx.x) / kJoinLanes;
  const int col = (static_cast<int>(blockIdx.x) * kJoinLanes + lane) * kGroup;
  uint4 most{};
  if (col < s.pitch) {
#pragma unroll 8
    for (int i = row; i < s.ctas; i += kJoinRows)
      keep_larger_scales(most, *reinterpret_cast<const uint4*>(s.of_ctas + i * s.pitch + col));
  }
  of_rows[row][lane] = most;
  __syncthreads();
  if (row > 0) return;
#pragma unroll
  for (int i = 1; i < kJoinRows; ++i) keep_larger_scales(most, of_rows[i][lane]);
  FloatVec8 scales;
  unpack8(most, scales);
  store8(s.scales + col, min(max(s.cols - col, 0), kGroup), scales);
}

// --- scales that are known: tiles are turned ------------------------------------------------------------------------

template <class T>
struct TurnSource {
  const T* x;  // [tokens, columns]
  int columns;
  float* scales;
  int scale_stride;  // from a column's scale to the next: 0 if they share one
  Fp8Columns out;
  float* amax = nullptr;  // of a site, to be raised if kNote
};

template <bool kNote, class Format, class T, bool kCounts>
__global__ void __launch_bounds__(kThreads) encode_turned(const __grid_constant__ PdlArgs<TurnSource<T>> given) {
  const TurnSource<T>& s = given.wait();
  const int first_token = static_cast<int>(blockIdx.x) * TurnedTile::kTokens;
  const int first = static_cast<int>(blockIdx.y) * TurnedTile::kColumns;
  const int columns = min(s.columns - first, TurnedTile::kColumns);
  FloatVec8 inv;
  [[maybe_unused]] float amax = 0;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const int column = first + static_cast<int>(threadIdx.x) % kLanes * kGroup + i;
    inv[i] = column < s.columns ? reciprocal_of(s.scales[column * s.scale_stride]) : 0.0f;
  }
  write_turned<Format, kCounts>(s.out, inv, first, columns, first_token, [&](int token, int lane, FloatVec8(&x)[4]) {
    const int col = first + lane * kGroup, n = min(max(s.columns - col, 0), kGroup);
    const T* from = s.x + int64_t{token} * s.columns + col;
    Fetched8<T> held[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) held[t] = fetch8(from + t * s.columns, token + t < s.out.tokens ? n : 0);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      unpack8(held[t], x[t]);
      if constexpr (kNote) amax = greater_magnitude(amax, group_amax(x[t]));
    }
  });
  if constexpr (kNote) note(s.amax, s.scales, amax);
}

// --- scales ---------------------------------------------------------------------------------------------------------

struct Scales {
  const float* scales;
  int64_t count;
  float* most;
};
__global__ void __launch_bounds__(kThreads) find_largest(const __grid_constant__ PdlArgs<Scales> given) {
  const Scales& s = given.wait();
  unsigned most = 0;  // as integers, so that a NaN keeps its bits
  for (int64_t i = threadIdx.x; i < s.count; i += kThreads) most = max(most, __float_as_uint(s.scales[i]));
  CtaMax cta_max;
  const float largest = cta_max(__uint_as_float(most));
  if (threadIdx.x == 0) *s.most = largest;
}

struct Amaxes {
  float* scales;
  int64_t count;
  Fp8Format format;
};
__global__ void __launch_bounds__(kThreads) amax_to_scale(const __grid_constant__ PdlArgs<Amaxes> given) {
  const Amaxes& s = given.wait();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < s.count) s.scales[i] = s.format.scale_of(s.scales[i]);
}

struct Floats {
  float* to;
  int64_t count;
};
__global__ void __launch_bounds__(kThreads) set_to_zero(const __grid_constant__ PdlArgs<Floats> given) {
  const Floats& s = given.wait();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < s.count) s.to[i] = 0.0f;
}

unsigned ctas(int64_t n, int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

void to_scales(const Context& ctx, const Tensor& amax, Fp8Format format) {
  agoq::cuda::launch(ctx, amax_to_scale, ctas(amax.count(), kThreads), kThreads,
                     Amaxes{amax.as<float>(), amax.count(), format});
}

template <class T>
dim3 encode_grid(const Fp8Source<T>& s, Major x_major) {
  require(s.rows <= int64_t{65535} * (kThreads / kLanes), "an operand of {} rows is too large for one kernel", s.rows);
  return {ctas(s.padded_k, kTileK), ctas(s.rows, x_major == Major::K ? kThreads / kLanes : kTileRows)};
}

// Raises amax to the largest magnitude of x.
template <class T>
void sweep_amax(const Context& ctx, const Tensor& x, float* amax) {
  agoq::cuda::launch(ctx, whole_amax<T>, dim3(static_cast<unsigned>(ctx.gpu().multiprocessors() * kSweepCtas)),
                     dim3(kThreads), Sweep<T>{x.as<T>(), x.count(), amax});
}

// With the scales of `out`.
template <bool kNote, class T>
void turn(const Context& ctx, const Tensor& x, const Operand& out, float* amax) {
  const auto kernel = counting_kernel(out, [&]<bool kCounts>() {
    return out.dtype() == DType::E4M3 ? encode_turned<kNote, codec::OperandE4M3, T, kCounts>
                                      : encode_turned<kNote, codec::OperandE5M2, T, kCounts>;
  });
  agoq::cuda::launch(ctx, kernel, turned_grid(out.k(), x.shape[1]), kThreads,
                     TurnSource<T>{x.as<T>(), static_cast<int>(x.shape[1]), out.scale.as<float>(),
                                   out.granularity == Granularity::Row ? 1 : 0, Fp8Columns(out, x.shape[0]), amax});
}

template <class Format, class T>
void encode(const Context& ctx, const Tensor& x, Major x_major, const Operand& out) {
  const bool k_major = x_major == Major::K;
  const Fp8Source<T> s = source_of<T>(x, x.shape[k_major ? 1 : 0], out);
  const dim3 grid = encode_grid(s, x_major);
  clear(ctx, out.scale);
  if (out.granularity == Granularity::Tensor)
    sweep_amax<T>(ctx, x, s.scales);
  else
    agoq::cuda::launch(ctx, k_major ? row_amax<T> : column_amax<T>, grid, kThreads, s);
  to_scales(ctx, out.scale, s.format);
  if (out.granularity == Granularity::Tensor && !k_major) return to_fp8_transposed_with(ctx, x, out);
  const auto by_columns = [&]<bool kCounts>() { return column_encode<Format, T, kCounts>; };
  agoq::cuda::launch(ctx, k_major ? row_encode<T> : counting_kernel(out, by_columns), grid, kThreads, s);
  if (out.max_scale) largest_scale(ctx, out.scale, out.max_scale);
}

// A row that fits into the registers of a CTA.
bool held_in_registers(const Operand& out) {
  return out.granularity == Granularity::Row && out.k() <= kMostHeldRow;
}

// launch.operator()<groups of eight that a thread holds>(threads of a CTA)
template <class Launch>
void for_held_rows(const Operand& out, Launch&& launch) {
  constexpr int kWarpSize = 32;
  const int groups = static_cast<int>(out.k()) / kGroup;
  const int threads = std::min(ceil_div(groups, kWarpSize) * kWarpSize, kThreads);
  const int held = ceil_div(groups, threads);
  const dim3 cta(static_cast<unsigned>(threads));
  if (held <= 2) return launch.template operator()<2>(cta);
  if (held <= 4) return launch.template operator()<4>(cta);
  launch.template operator()<kMostRowGroups>(cta);
}

template <class T>
void encode_held_rows(const Context& ctx, const Tensor& x, const Operand& out) {
  clear_max_scale(ctx, out);
  for_held_rows(out, [&]<int kGroups>(dim3 cta) {
    const auto kernel = counting_kernel(out, [&]<bool kCounts>() { return encode_rows<T, kGroups, kCounts>; });
    agoq::cuda::launch(ctx, kernel, dim3(static_cast<unsigned>(out.rows())), cta,
                       RowSource<T>{x.as<T>(), static_cast<int>(x.cols()), Fp8Rows(out)});
  });
}

template <class T>
void encode_held_weight(const Context& ctx, const Tensor& w, const Operand& out, const Tensor& of_ctas,
                        const Tensor& transposed_scale) {
  const int rows = static_cast<int>(w.shape[0]), cols = static_cast<int>(w.cols());
  for_held_rows(out, [&]<int kGroups>(dim3 cta) {
    const auto kernel = counting_kernel(out, [&]<bool kCounts>() { return encode_weight<T, kGroups, kCounts>; });
    agoq::cuda::launch(
        ctx, kernel, dim3(static_cast<unsigned>(of_ctas.shape[0])), cta,
        WeightRows<T>{w.as<T>(), rows, cols, Fp8Rows(out), of_ctas.as<Bf16>(), weight_rows_of_cta(rows)});
  });
  agoq::cuda::launch(ctx, join_column_scales, ctas(out.k(), kJoinLanes * kGroup), kThreads,
                     ColumnScales{of_ctas.as<Bf16>(), static_cast<int>(of_ctas.shape[0]), cols, out.k(),
                                  transposed_scale.as<float>()});
}

// The scales of the transpose alone.
template <class T>
void find_transposed_scale(const Context& ctx, const Tensor& w, const Operand& out, const Tensor& transposed_scale) {
  Operand transposed{out.data, transposed_scale, Granularity::Row};  // whose codes are not written
  transposed.data.shape = {w.cols(), w.shape[0]};
  const Fp8Source<T> s = source_of<T>(w, w.shape[0], transposed);
  clear(ctx, transposed_scale);
  agoq::cuda::launch(ctx, column_amax<T>, dim3(ctas(s.k, kTileK), ctas(s.rows, kTileRows)), kThreads, s);
  to_scales(ctx, transposed_scale, s.format);
}

}  // namespace

void to_fp8(const Context& ctx, const Tensor& x, Major x_major, const Operand& out) {
  by_type(x.dtype, [&]<class T>() {
    if (x_major == Major::K && held_in_registers(out)) return encode_held_rows<T>(ctx, x, out);
    if (out.dtype() == DType::E4M3) return encode<codec::OperandE4M3, T>(ctx, x, x_major, out);
    encode<codec::OperandE5M2, T>(ctx, x, x_major, out);
  });
}

void weight_to_fp8(const Context& ctx, const Tensor& w, const Operand& out, const Tensor& of_ctas,
                   const Tensor& transposed_scale) {
  by_type(w.dtype, [&]<class T>() {
    if (held_in_registers(out)) return encode_held_weight<T>(ctx, w, out, of_ctas, transposed_scale);
    to_fp8(ctx, w, Major::K, out);
    find_transposed_scale<T>(ctx, w, out, transposed_scale);
  });
}

void to_fp8_transposed_with(const Context& ctx, const Tensor& x, const Operand& out) {
  by_type(x.dtype, [&]<class T>() { turn<false, T>(ctx, x, out, nullptr); });
}

void to_fp8(const Context& ctx, const Tensor& x, Major x_major, const ScaleSite& site, const Operand& out) {
  by_type(x.dtype, [&]<class T>() {
    if (x_major == Major::MN) return turn<true, T>(ctx, x, out, site.amax.as<float>());
    Fp8Source<T> s = source_of<T>(x, x.shape[1], out);
    s.amax = site.amax.as<float>();
    agoq::cuda::launch(ctx, row_encode<T>, encode_grid(s, x_major), kThreads, s);
  });
}

void note_amax(const Context& ctx, const Tensor& x, const Tensor& amax) {
  by_type(x.dtype, [&]<class T>() { sweep_amax<T>(ctx, x, amax.as<float>()); });
}

void largest_scale(const Context& ctx, const Tensor& scales, const Tensor& to) {
  agoq::cuda::launch(ctx, find_largest, dim3(1), dim3(kThreads),
                     Scales{scales.as<float>(), scales.count(), to.as<float>()});
}

void clear_max_scale(const Context& ctx, const Operand& out) {
  if (out.max_scale) clear(ctx, out.max_scale);
}

void clear(const Context& ctx, const Tensor& numbers) {
  agoq::cuda::launch(ctx, set_to_zero, ctas(numbers.count(), kThreads), kThreads,
                     Floats{numbers.as<float>(), numbers.count()});
}

}  // namespace agoq::ops::cuda
