// What is in 8-bit floats by rows already: turned for dW, or back to numbers.
#include "ops/by_type.h"
#include "ops/linear/fp8_cuda.h"
#include "ops/linear/fp8_tile.cuh"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

constexpr int kThreads = TurnedTile::kThreads;

// Codes with a scale per row become codes of its transpose with the largest of the scales.
struct CodeSource {
  const uint8_t* codes;  // [tokens, pitch]
  int64_t pitch;
  int tokens, columns;
  const float *scales, *max_scale;
  uint8_t* out;  // [columns, out_pitch]
  int64_t out_pitch;
  float* out_scale;
  LostNumbers lost;
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
    if (s.lost && inv > 0) {
      int flushed = 0;
#pragma unroll
      for (int t = 0; t < 4; ++t) flushed += __popc(zero_codes(w[t]) & ~zero_codes(words(t, i)));
      if (flushed > 0) s.lost.add(0, static_cast<uint32_t>(flushed));
    }
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

}  // namespace

void transpose_codes(const Context& ctx, const Operand& x, const Operand& out) {
  const CodeSource s{x.data.raw(),
                     x.k(),
                     static_cast<int>(x.rows()),
                     static_cast<int>(out.rows()),
                     x.scale.as<float>(),
                     x.max_scale.as<float>(),
                     out.data.raw(),
                     out.k(),
                     out.scale.as<float>(),
                     LostNumbers(out)};
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

}  // namespace agoq::ops::cuda
