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
                 kAll,      out.scale.as<float>(),        out.data.raw(),      Fp8Format(out.dtype())};
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
  if (t.row >= s.rows || t.col >= s.padded_k) return;
  FloatVec8 x;
  load8(s.x + int64_t{t.row} * s.k + t.col, t.n, x);
  const float inv = reciprocal_of(*s.scale_of(t.row, t.col));
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
constexpr int kRowCtas = 4;        // of a multiprocessor, at least

template <class T, int kGroups>
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
    if (col(g) < s.out.pitch) s.out.store8(row, col(g), AllOrNone{true}, x, inv);
  }
}

// --- one scale, which is known: tiles are turned --------------------------------------------------------------------

template <class T>
struct TurnSource {
  const T* x;  // [tokens, columns]
  int columns;
  const float* scale;
  float* scales;  // [columns], or none: a copy for each row of the operand
  Fp8Columns out;
};

template <class Format, class T>
__global__ void __launch_bounds__(kThreads) encode_turned(const __grid_constant__ PdlArgs<TurnSource<T>> given) {
  const TurnSource<T>& s = given.wait();
  const float scale = *s.scale;
  const int first_token = static_cast<int>(blockIdx.x) * TurnedTile::kTokens;
  const int first = static_cast<int>(blockIdx.y) * TurnedTile::kColumns, thread = static_cast<int>(threadIdx.x);
  const int columns = min(s.columns - first, TurnedTile::kColumns);
  if (s.scales && blockIdx.x == 0 && thread < columns) s.scales[first + thread] = scale;
  write_turned<Format>(s.out, reciprocal_of(scale), first, columns, first_token,
                       [&](int token, int lane, FloatVec8(&x)[4]) {
                         const int col = first + lane * kGroup, n = min(max(s.columns - col, 0), kGroup);
                         const T* from = s.x + int64_t{token} * s.columns + col;
                         Fetched8<T> held[4];
#pragma unroll
                         for (int t = 0; t < 4; ++t)
                           held[t] = fetch8(from + t * s.columns, token + t < s.out.tokens ? n : 0);
#pragma unroll
                         for (int t = 0; t < 4; ++t) unpack8(held[t], x[t]);
                       });
}

// Codes with a scale per row become codes of its transpose with the largest of the scales.
struct CodeSource {
  const uint8_t* codes;  // [tokens, pitch]
  int64_t pitch;
  int tokens, columns;
  const float *scales, *max_scale;
  uint8_t* out;  // [columns, out_pitch]
  int64_t out_pitch;
  float* out_scale;
};

// Four codes times a power of two that is at most 1.
template <class Format>
__device__ inline uint32_t scaled_codes(uint32_t codes, float by) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  const auto two = [&](uint32_t pair) {
    uint32_t halves;
    if constexpr (Format::kMantissaBits == 3)
      asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
    else
      asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
    float first, second;
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(first), "=f"(second)
        : "r"(halves));
    return fp8_pair<Format>(first * by, second * by);
  };
  return two(codes & 0xffffu) | two(codes >> 16) << 16;
#else
  uint32_t scaled = 0;
  for (int i = 0; i < 4; ++i) scaled |= Format::encode(Format::decode(codes >> (8 * i) & 0xffu) * by) << (8 * i);
  return scaled;
#endif
}

// The four bytes of four words, turned: word i gets byte i of each.
__device__ inline void turn_bytes(uint32_t (&w)[4]) {
  const uint32_t low01 = __byte_perm(w[0], w[1], 0x5140), high01 = __byte_perm(w[0], w[1], 0x7362);
  const uint32_t low23 = __byte_perm(w[2], w[3], 0x5140), high23 = __byte_perm(w[2], w[3], 0x7362);
  w[0] = __byte_perm(low01, low23, 0x5410);
  w[1] = __byte_perm(low01, low23, 0x7632);
  w[2] = __byte_perm(high01, high23, 0x5410);
  w[3] = __byte_perm(high01, high23, 0x7632);
}

template <class Format>
__global__ void __launch_bounds__(kThreads) turn_codes(const __grid_constant__ PdlArgs<CodeSource> given) {
  const CodeSource& s = given.wait();
  constexpr int kChunk = 16, kChunks = TurnedTile::kColumns / kChunk;  // codes of a token that a thread has
  const int chunk = static_cast<int>(threadIdx.x) % kChunks, quad = static_cast<int>(threadIdx.x) / kChunks;
  const int first_token = static_cast<int>(blockIdx.x) * TurnedTile::kTokens, token = first_token + 4 * quad;
  const int first = static_cast<int>(blockIdx.y) * TurnedTile::kColumns, col = first + chunk * kChunk;
  uint4 rows[4] = {};
  float by[4] = {};
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    if (token + t >= s.tokens || col >= s.columns) continue;
    rows[t] = *reinterpret_cast<const uint4*>(s.codes + (token + t) * s.pitch + col);
    by[t] = s.scales[token + t];
  }
  const float max_scale = *s.max_scale, inv = reciprocal_of(max_scale);
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *s.out_scale = max_scale;
#pragma unroll
  for (float& scale : by) scale *= inv;
  TurnedTile tile;
  const auto words = [&](int t, int i) {
    return i == 0 ? rows[t].x : i == 1 ? rows[t].y : i == 2 ? rows[t].z : rows[t].w;
  };
#pragma unroll
  for (int i = 0; i < kChunk / 4; ++i) {
    uint32_t w[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) w[t] = by[t] == 1.0f ? words(t, i) : scaled_codes<Format>(words(t, i), by[t]);
    if (!(inv > 0)) w[0] = w[1] = w[2] = w[3] = 0;  // zeros, or a number that is not finite
    turn_bytes(w);
#pragma unroll
    for (int j = 0; j < 4; ++j) tile.put(chunk * kChunk + 4 * i + j, quad, w[j]);
  }
  tile.flush(s.out, s.out_pitch, first, min(s.columns - first, TurnedTile::kColumns), first_token);
}

// --- back to numbers ------------------------------------------------------------------------------------------------

template <class T>
struct RowCodes {
  const uint8_t* codes;
  int64_t pitch;
  const float* scales;
  T* numbers;
  int cols;
};

template <class Format, class T>
__global__ void __launch_bounds__(kThreads) decode_rows(const __grid_constant__ PdlArgs<RowCodes<T>> given) {
  const RowCodes<T>& s = given.wait();
  const int64_t row = blockIdx.x;
  const float scale = s.scales[row];
  for (int i = static_cast<int>(threadIdx.x); i < s.cols; i += kThreads)
    s.numbers[row * s.cols + i] = from_float<T>(Format::decode(s.codes[row * s.pitch + i]) * scale);
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
  if (out.granularity == Granularity::Tensor)
    agoq::cuda::launch(ctx, whole_amax<T>, dim3(static_cast<unsigned>(ctx.gpu().multiprocessors() * kSweepCtas)),
                       dim3(kThreads), Sweep<T>{x.as<T>(), x.count(), s.scales});
  else
    agoq::cuda::launch(ctx, k_major ? row_amax<T> : column_amax<T>, grid, kThreads, s);
  agoq::cuda::launch(ctx, amax_to_scale<Format>, ctas(scales, kThreads), kThreads, s.scales, scales);
  if (out.granularity == Granularity::Tensor && !k_major) return to_fp8_transposed(ctx, x, out.scale, out);
  agoq::cuda::launch(ctx, k_major ? row_encode<T> : column_encode<Format, T>, grid, kThreads, s);
  if (out.max_scale) largest_scale(ctx, out.scale, out.max_scale);
}

// A row that fits into the registers of a CTA.
bool held_in_registers(const Operand& out) {
  return out.granularity == Granularity::Row && out.max_scale && out.k() <= int64_t{kThreads} * kMostRowGroups * kGroup;
}

template <class T>
void encode_held_rows(const Context& ctx, const Tensor& x, const Operand& out) {
  constexpr int kWarpSize = 32;
  const int groups = static_cast<int>(out.k()) / kGroup;
  const int threads = std::min(ceil_div(groups, kWarpSize) * kWarpSize, kThreads);
  const RowSource<T> s{x.as<T>(), static_cast<int>(x.shape[1]), Fp8Rows(out)};
  clear_max_scale(ctx, out);
  const auto launch = [&](auto kernel) {
    agoq::cuda::launch(ctx, kernel, dim3(static_cast<unsigned>(out.rows())), dim3(static_cast<unsigned>(threads)), s);
  };
  const int held = ceil_div(groups, threads);
  if (held <= 2) return launch(encode_rows<T, 2>);
  if (held <= 4) return launch(encode_rows<T, 4>);
  launch(encode_rows<T, kMostRowGroups>);
}

}  // namespace

void to_fp8(const Context& ctx, const Tensor& x, Major x_major, const Operand& out) {
  require(out.rows() <= int64_t{65535} * (kThreads / kLanes), "an operand of {} rows is too large for one kernel",
          out.rows());
  by_type(x.dtype, [&]<class T>() {
    if (x_major == Major::K && held_in_registers(out)) return encode_held_rows<T>(ctx, x, out);
    if (out.dtype() == DType::E4M3) return encode<codec::OperandE4M3, T>(ctx, x, x_major, out);
    encode<codec::OperandE5M2, T>(ctx, x, x_major, out);
  });
}

void to_fp8_transposed(const Context& ctx, const Tensor& x, const Tensor& known_scale, const Operand& out) {
  const int64_t tokens = x.shape[0], columns = x.shape[1];
  const bool of_rows = out.granularity == Granularity::Row;
  by_type(x.dtype, [&]<class T>() {
    const bool e4m3 = out.dtype() == DType::E4M3;
    agoq::cuda::launch(ctx, e4m3 ? encode_turned<codec::OperandE4M3, T> : encode_turned<codec::OperandE5M2, T>,
                       turned_grid(out.k(), columns), kThreads,
                       TurnSource<T>{x.as<T>(), static_cast<int>(columns), known_scale.as<float>(),
                                     of_rows ? out.scale.as<float>() : nullptr, Fp8Columns(out, tokens)});
  });
  if (!of_rows && known_scale.data != out.scale.data)
    AGOQ_CUDA_CHECK(cudaMemcpyAsync(out.scale.data, known_scale.data, sizeof(float), cudaMemcpyDeviceToDevice,
                                    agoq::cuda::stream(ctx)));
}

void transpose_codes(const Context& ctx, const Operand& x, const Operand& out) {
  const CodeSource s{x.data.raw(),
                     x.k(),
                     static_cast<int>(x.rows()),
                     static_cast<int>(out.rows()),
                     x.scale.as<float>(),
                     x.max_scale.as<float>(),
                     out.data.raw(),
                     out.k(),
                     out.scale.as<float>()};
  agoq::cuda::launch(ctx, x.dtype() == DType::E4M3 ? turn_codes<codec::OperandE4M3> : turn_codes<codec::OperandE5M2>,
                     turned_grid(out.k(), out.rows()), kThreads, s);
}

void to_numbers(const Context& ctx, const Operand& x, const Tensor& numbers) {
  by_type(numbers.dtype, [&]<class T>() {
    const bool e4m3 = x.dtype() == DType::E4M3;
    agoq::cuda::launch(
        ctx, e4m3 ? decode_rows<codec::OperandE4M3, T> : decode_rows<codec::OperandE5M2, T>,
        dim3(static_cast<unsigned>(numbers.shape[0])), dim3(kThreads),
        RowCodes<T>{x.data.raw(), x.k(), x.scale.as<float>(), numbers.as<T>(), static_cast<int>(numbers.cols())});
  });
}

void largest_scale(const Context& ctx, const Tensor& scales, const Tensor& to) {
  agoq::cuda::launch(ctx, find_largest, dim3(1), dim3(kThreads),
                     Scales{scales.as<float>(), scales.count(), to.as<float>()});
}

void clear_max_scale(const Context& ctx, const Operand& out) {
  AGOQ_CUDA_CHECK(cudaMemsetAsync(out.max_scale.data, 0, sizeof(float), agoq::cuda::stream(ctx)));
}

}  // namespace agoq::ops::cuda
