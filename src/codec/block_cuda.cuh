// How a GPU reads and writes blocks: what every fused kernel is built from.
//
// Sixteen neighbouring lanes, half a warp, share a block of 128; each holds eight consecutive numbers: one 16-byte
// access in bf16, and the numbers that share one call of Philox and one word of packed codes. All functions that speak
// of a block must be called by whole warps; lanes without numbers pass zeros and n = 0. Rows of any length and
// alignment work; aligned ones are fast.
#pragma once

#include <type_traits>

#include "codec/dispatch.h"
#include "codec/group.h"
#include "device/cuda.h"

namespace agoq::codec::cuda {

using agoq::cuda::PdlArgs;

inline constexpr int kLanes = 16;  // that share a block
using codec::FloatVec8;
using codec::kGroup;  // numbers of a lane
inline constexpr unsigned kWholeWarp = 0xffffffffu;

// How many of its eight numbers a lane has: an int from 0 to 8, or this where rows are made of whole blocks and their
// numbers and codes are aligned. No other way of reading and writing them is then compiled.
struct AllOrNone {
  bool all = false;
};
__device__ inline bool any(int n) {
  return n > 0;
}
__device__ inline bool any(AllOrNone n) {
  return n.all;
}

// --- plain numbers -------------------------------------------------------------------------------------------------

template <class Word>
__host__ __device__ inline bool aligned(const void* p) {
  return (reinterpret_cast<uintptr_t>(p) & (sizeof(Word) - 1)) == 0;
}

__device__ inline float low_bf16(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ inline float high_bf16(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
// Two numbers as bf16, rounded to nearest, ties to even. A NaN stays one, but not its bits.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// The first n of the eight numbers at p as they lie in memory, zeros behind them; and as fp32. A thread that needs
// several fetches all of them before it unpacks the first, so that the loads overlap.
struct Float8 {
  float4 low, high;
};
template <class Number>
using Fetched8 = std::conditional_t<sizeof(Number) == 2, uint4, Float8>;
__device__ inline uint4 fetch8(const Bf16* p, int n) {
  if (n == kGroup && aligned<uint4>(p)) return *reinterpret_cast<const uint4*>(p);
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (i < n) words[i / 2] |= static_cast<uint32_t>(p[i].bits) << (16 * (i % 2));
  return {words[0], words[1], words[2], words[3]};
}
__device__ inline Float8 fetch8(const float* p, int n) {
  if (n == kGroup && aligned<float4>(p))
    return {*reinterpret_cast<const float4*>(p), *(reinterpret_cast<const float4*>(p) + 1)};
  const auto number = [&](int i) { return i < n ? p[i] : 0.0f; };
  return {{number(0), number(1), number(2), number(3)}, {number(4), number(5), number(6), number(7)}};
}
__device__ inline uint4 fetch8(const Bf16* p, AllOrNone n) {
  return n.all ? *reinterpret_cast<const uint4*>(p) : uint4{};
}
__device__ inline Float8 fetch8(const float* p, AllOrNone n) {
  if (!n.all) return {};
  return {*reinterpret_cast<const float4*>(p), *(reinterpret_cast<const float4*>(p) + 1)};
}
__device__ inline void unpack8(const uint4& w, FloatVec8& x) {
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = low_bf16(words[i]);
    x[2 * i + 1] = high_bf16(words[i]);
  }
}
__device__ inline void unpack8(const Float8& f, FloatVec8& x) {
  x[0] = f.low.x, x[1] = f.low.y, x[2] = f.low.z, x[3] = f.low.w;
  x[4] = f.high.x, x[5] = f.high.y, x[6] = f.high.z, x[7] = f.high.w;
}
template <class Number, class Count>
__device__ inline void load8(const Number* p, Count n, FloatVec8& x) {
  unpack8(fetch8(p, n), x);
}
// To global memory. An assignment of sixteen bytes may become four of four, which moves four times as many sectors.
__device__ inline void store8(Bf16* p, AllOrNone n, const FloatVec8& x) {
  if (n.all)
    __stwb(reinterpret_cast<uint4*>(p),
           make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])));
}
__device__ inline void store8(float* p, AllOrNone n, const FloatVec8& x) {
  if (!n.all) return;
  reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
__device__ inline void store8(Bf16* p, int n, const FloatVec8& x) {
  if (n == kGroup && aligned<uint4>(p)) return store8(p, AllOrNone{true}, x);
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (i < n) p[i].bits = static_cast<uint16_t>(pack_bf16(x[i], 0.0f));
}
__device__ inline void store8(float* p, int n, const FloatVec8& x) {
  if (n == kGroup && aligned<float4>(p)) return store8(p, AllOrNone{true}, x);
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (i < n) p[i] = x[i];
}

// The first n of sizeof(Word) bytes.
template <class Word>
__device__ inline Word load_bytes(const uint8_t* p, int n) {
  if (n == static_cast<int>(sizeof(Word)) && aligned<Word>(p)) return *reinterpret_cast<const Word*>(p);
  Word word = 0;
  for (int i = 0; i < n; ++i) word |= static_cast<Word>(static_cast<Word>(p[i]) << (8 * i));
  return word;
}
template <class Word>
__device__ inline void store_bytes(uint8_t* p, int n, Word word) {
  if (n == static_cast<int>(sizeof(Word)) && aligned<Word>(p)) {
    *reinterpret_cast<Word*>(p) = word;
  } else {
    for (int i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(word >> (8 * i));
  }
}

template <class Word>
__device__ inline Word load_bytes(const uint8_t* p, AllOrNone n) {
  return n.all ? *reinterpret_cast<const Word*>(p) : Word{};
}
template <class Word>
__device__ inline void store_bytes(uint8_t* p, AllOrNone n, Word word) {
  if (n.all) *reinterpret_cast<Word*>(p) = word;
}

// --- where numbers lie ----------------------------------------------------------------------------------------------

// A lane's share of a block of a row.
struct LaneTile {
  int block = 0;   // in the row
  int lane = 0;    // 0 to 15: the lane's group in the block
  int col = 0;     // of its first number in the row
  int n = 0;       // how many numbers it has, 0 to 8
  int size = 0;    // numbers in the block
  int offset = 0;  // of the block's codes in the row's codes, in bytes
};

// The same in a row of whole blocks.
struct WholeLaneTile {
  int block = 0, lane = 0, col = 0;
  AllOrNone n;
  static constexpr int size = kBlock;
  int offset = 0;
};

// Whether the row has that block.
__device__ inline bool exists(const LaneTile& p) {
  return p.size > 0;
}
__device__ inline bool exists(const WholeLaneTile& p) {
  return p.n.all;
}

__host__ __device__ constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}
__device__ constexpr AllOrNone ceil_div(AllOrNone n, int) {  // the bytes that have the codes of n numbers
  return n;
}

// Bytes of the codes of n numbers, without a switch over codecs (host: block_bytes).
template <class F>
__host__ __device__ constexpr int code_bytes(int n) {
  if constexpr (F::kBits >= 8) return n * (F::kBits / 8);
  return ceil_div(n, 2) + ceil_div(n * (F::kBits - 4), 8);
}

// n / d for n < 2^31 by one multiplication and a shift (Granlund and Montgomery 1994).
class FastDivmod {
 public:
  FastDivmod() = default;
  explicit FastDivmod(uint32_t d)
      : shift_(31 + static_cast<int>(std::bit_width(d - 1))),
        multiplier_(static_cast<uint32_t>(((uint64_t{1} << shift_) + d - 1) / d)) {}
  __host__ __device__ uint32_t divide(uint32_t n) const {
    return static_cast<uint32_t>(uint64_t{n} * multiplier_ >> shift_);
  }

 private:
  int shift_ = 0;
  uint32_t multiplier_ = 0;
};

// RowBlocks for a kernel: 32-bit, without divisions where a row is one segment or has no short blocks.
struct RowLayout {
  int cols = 0, segment = 0, per_segment = 0, blocks = 0;
  bool seamless = false;  // block b begins at column 128 b
  FastDivmod by_segment;  // block -> segment

  RowLayout() = default;
  explicit RowLayout(const RowBlocks& row)
      : cols(static_cast<int>(row.cols)),
        segment(static_cast<int>(row.segment)),
        per_segment(static_cast<int>(row.blocks_per_segment())),
        blocks(static_cast<int>(row.blocks())),
        seamless(row.segment == row.cols || row.segment % kBlock == 0),
        by_segment(static_cast<uint32_t>(per_segment)) {}

  // Lane `lane` of block `block`; a block beyond the row has no numbers.
  template <class F>
  __device__ LaneTile place(int block, int lane) const {
    LaneTile p{block, lane, 0, 0, 0, 0};
    if (block >= blocks) return p;
    int begin = block * static_cast<int>(kBlock), end = cols;
    if (seamless) {
      p.offset = block * code_bytes<F>(kBlock);
    } else {
      const int segment_index = static_cast<int>(by_segment.divide(static_cast<uint32_t>(block)));
      const int within = block - segment_index * per_segment;
      begin = segment_index * segment + within * static_cast<int>(kBlock);
      end = (segment_index + 1) * segment;
      const int last = segment - (per_segment - 1) * static_cast<int>(kBlock);
      p.offset = segment_index * ((per_segment - 1) * code_bytes<F>(kBlock) + code_bytes<F>(last)) +
                 within * code_bytes<F>(kBlock);
    }
    p.size = min(end - begin, static_cast<int>(kBlock));
    p.col = begin + lane * kGroup;
    p.n = min(max(p.size - lane * kGroup, 0), kGroup);
    return p;
  }
};

// A Quantized for a kernel that knows its format; one that is not kept may still say how its rows are divided.
struct QuantPtr {
  uint8_t* codes = nullptr;
  Bf16* scales = nullptr;
  int64_t row_bytes = 0;
  RowLayout row;

  QuantPtr() = default;
  explicit QuantPtr(const Quantized& q)
      : codes(q.kept() ? q.codes.raw() : nullptr),
        scales(q.scales ? static_cast<Bf16*>(q.scales.data) : nullptr),
        row_bytes(q.kept() ? q.codes.cols() : 0),
        row(q.row.segment > 0 ? RowLayout(q.row) : RowLayout()) {}
  // The same without its first rows: a kernel that goes down row by row saves the products. A step that is always the
  // same is best given in bytes and blocks, multiplied once.
  __device__ QuantPtr below(int64_t rows) const {
    QuantPtr view = *this;
    view.codes += rows * row_bytes;
    view.scales += rows * row.blocks;
    return view;
  }
  __device__ void advance(int64_t bytes, int64_t blocks) {
    codes += bytes;
    scales += blocks;
  }
  template <class P>
  __device__ uint8_t* codes_of(int64_t r, const P& p) const {
    return codes + r * row_bytes + p.offset;
  }
  template <class P>
  __device__ Bf16* scale_of(int64_t r, const P& p) const {
    return scales + r * row.blocks + p.block;
  }
};

// --- a lane's codes --------------------------------------------------------------------------------------------------

// A group's codes <-> the planes of a block (docs/formats.md, layout). `block` points to the block's codes.
template <class F, class P>
__device__ inline void store_codes(uint8_t* block, const P& p, const Packed& codes) {
  if constexpr (F::kBits == 8) {
    store_bytes(block + p.lane * 8, p.n, uint64_t{codes.high} << 32 | codes.low);
  } else {
    store_bytes(block + p.lane * 4, ceil_div(p.n, 2), codes.low);
    uint8_t* top = block + ceil_div(p.size, 2);
    if constexpr (F::kBits == 5)
      if (any(p.n)) top[p.lane] = static_cast<uint8_t>(codes.high);
    if constexpr (F::kBits == 6) store_bytes(top + p.lane * 2, ceil_div(p.n, 4), static_cast<uint16_t>(codes.high));
  }
}

template <class F, class P>
__device__ inline Packed load_codes(const uint8_t* block, const P& p) {
  if constexpr (F::kBits == 8) {
    const uint64_t codes = load_bytes<uint64_t>(block + p.lane * 8, p.n);
    return {static_cast<uint32_t>(codes), static_cast<uint32_t>(codes >> 32)};
  } else {
    Packed codes{load_bytes<uint32_t>(block + p.lane * 4, ceil_div(p.n, 2)), 0};
    const uint8_t* top = block + ceil_div(p.size, 2);
    if constexpr (F::kBits == 5) codes.high = any(p.n) ? top[p.lane] : 0u;
    if constexpr (F::kBits == 6) codes.high = load_bytes<uint16_t>(top + p.lane * 2, ceil_div(p.n, 4));
    return codes;
  }
}

// --- blocks ----------------------------------------------------------------------------------------------------------

// The larger magnitude; NaN if one is.
__device__ inline float greater_magnitude(float a, float b) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(fabsf(a)), "f"(fabsf(b)));
  return most;
}

// The largest magnitude of a lane's numbers, and of the block that 16 lanes share; infinities and NaNs are largest of
// all.
__device__ inline float group_amax(const FloatVec8& x) {
  float most = greater_magnitude(x[0], x[1]);
#pragma unroll
  for (int i = 2; i < kGroup; ++i) most = greater_magnitude(most, x[i]);
  return most;
}
__device__ inline float block_amax(const FloatVec8& x) {
  float most = group_amax(x);
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2)
    most = greater_magnitude(most, __shfl_xor_sync(kWholeWarp, most, other));
  return most;
}

// The same of kCount blocks at once for less, from the lanes' own: a lane gets that of block lane / (kLanes / kCount).
// Halves of the lanes exchange what belongs to the other half, until each lane has one block.
template <int kCount>
__device__ inline float amax_of_share(float (&most)[kCount], int lane) {
  int other = kLanes / 2;
#pragma unroll
  for (int count = kCount / 2; count > 0; count /= 2, other /= 2) {
    const bool upper = (lane & other) != 0;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const float theirs = __shfl_xor_sync(kWholeWarp, upper ? most[k] : most[k + count], other);
      most[k] = greater_magnitude(upper ? most[k + count] : most[k], theirs);
    }
  }
#pragma unroll
  for (; other > 0; other /= 2) most[0] = greater_magnitude(most[0], __shfl_xor_sync(kWholeWarp, most[0], other));
  return most[0];
}

// What a kernel needs of a Rounding; the row's own blocks where the unsharded row is not given.
struct RngOffsets {
  PreparedRng prepared;
  GlobalOffset global_offset;
  bool stochastic = true;

  RngOffsets() = default;
  RngOffsets(const Rounding& rounding, const RowBlocks& row)
      : prepared(rounding.key), global_offset(rounding.global_offset), stochastic(rounding.stochastic) {
    if (global_offset.blocks_per_row == 0) global_offset.blocks_per_row = row.blocks();
  }
  // Block b of row r, counted in the whole tensor.
  __host__ __device__ int64_t block(int64_t r, int64_t b) const {
    return global_offset.row(r) * global_offset.blocks_per_row + global_offset.first_block + b;
  }
  __device__ Stochastic of_block(int64_t whole_block, int lane) const {
    return {prepared.of(static_cast<uint64_t>(whole_block) * kLanes + static_cast<uint64_t>(lane))};
  }
  template <class P>
  __device__ Stochastic of(int64_t r, const P& p) const {
    return of_block(block(r, p.block), p.lane);
  }
};

// x (zeros behind p.n) -> codes and scale of row r, with the draws of its group, or none.
template <class F, class P, class Rounded>
__device__ inline void encode_rounded(const QuantPtr& q, int64_t r, const P& p, const FloatVec8& x,
                                      const Rounded& rounding) {
  if constexpr (F::kScaled) {
    const Bf16 scale = group_scale<F>(block_amax(x));
    const Packed codes = encode_group<F>(x, group_reciprocal<F>(scale), rounding);
    if (any(p.n)) store_codes<F>(q.codes_of(r, p), p, carries_codes(scale) ? codes : Packed{});
    if (any(p.n) && p.lane == 0) *q.scale_of(r, p) = scale;
  } else {
    using Number = typename F::Stored;
    FloatVec8 rounded;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if constexpr (Rounded::kDraws)
        rounded[i] = F::decode(F::encode(x[i], rounding.draw(i)));
      else
        rounded[i] = x[i];
    }
    store8(reinterpret_cast<Number*>(q.codes_of(r, p)) + p.lane * kGroup, p.n, rounded);
  }
}
// The same to the nearest, and as `draws` says.
template <class F, class P>
__device__ inline void encode(const QuantPtr& q, int64_t r, const P& p, const FloatVec8& x) {
  encode_rounded<F>(q, r, p, x, Nearest{});
}
template <class F, class P>
__device__ inline void encode(const QuantPtr& q, int64_t r, const P& p, const FloatVec8& x, const RngOffsets& draws) {
  if (draws.stochastic)
    encode_rounded<F>(q, r, p, x, draws.of(r, p));
  else
    encode_rounded<F>(q, r, p, x, Nearest{});
}

// The same of two blocks at once, to the nearest, for less: each half of the lanes finds the scale of one of them.
template <class F, class P>
__device__ inline void encode_two(const QuantPtr& q, int64_t r, const P (&places)[2], const FloatVec8 (&x)[2]) {
  if constexpr (F::kScaled) {
    const bool second = places[0].lane >= kLanes / 2;
    float amax[2] = {group_amax(x[0]), group_amax(x[1])};
    const Bf16 scale = group_scale<F>(amax_of_share(amax, places[0].lane));
    const float mine = carries_codes(scale) ? group_reciprocal<F>(scale) : 0.0f;
    const float others = __shfl_xor_sync(kWholeWarp, mine, kLanes / 2);
    const float inverses[2] = {second ? others : mine, second ? mine : others};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Packed codes = encode_group<F>(x[k], inverses[k], Nearest{});
      const P& p = places[k];
      if (any(p.n)) store_codes<F>(q.codes_of(r, p), p, inverses[k] != 0.0f ? codes : Packed{});
      if (exists(p) && p.lane == k * (kLanes / 2)) *q.scale_of(r, p) = scale;
    }
  } else {
#pragma unroll
    for (int k = 0; k < 2; ++k) encode<F>(q, r, places[k], x[k]);
  }
}

// A lane's share of a block as it lies in memory.
template <class F, bool = F::kScaled>
struct Fetched {
  Packed codes;
  Bf16 scale;
};
template <class F>
struct Fetched<F, false> {
  Fetched8<typename F::Stored> numbers{};
};

// Codes of row r -> x, zeros behind p.n; in two parts where several loads shall overlap.
template <class F, class P>
__device__ inline Fetched<F> fetch(const QuantPtr& q, int64_t r, const P& p) {
  if (!any(p.n)) return {};
  if constexpr (F::kScaled)
    return {load_codes<F>(q.codes_of(r, p), p), *q.scale_of(r, p)};
  else
    return {fetch8(reinterpret_cast<const typename F::Stored*>(q.codes_of(r, p)) + p.lane * kGroup, p.n)};
}
template <class F>
__device__ inline void decode(const Fetched<F>& fetched, FloatVec8& x) {
  if constexpr (F::kScaled)
    decode_group<F>(fetched.codes, to_float(fetched.scale), x);
  else
    unpack8(fetched.numbers, x);
}
template <class F, class P>
__device__ inline void decode(const QuantPtr& q, int64_t r, const P& p, FloatVec8& x) {
  decode<F>(fetch<F>(q, r, p), x);
}

}  // namespace agoq::codec::cuda
