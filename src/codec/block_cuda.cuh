// How a GPU encodes and decodes blocks: what every fused kernel is built from.
//
// All functions that speak of a block must be called by whole warps; lanes without numbers pass zeros and have none in
// their tile. Rows of any length and alignment work; aligned ones are fast.
#pragma once

#include "codec/dispatch.h"
#include "codec/lane_tile.cuh"

namespace agoq::codec::cuda {

using agoq::cuda::PdlArgs;

// --- a lane's codes --------------------------------------------------------------------------------------------------

// A group's codes <-> the planes of a block (docs/formats.md, layout).
template <class F, class P>
__device__ inline void store_codes(uint8_t* codes, const P& p, const Packed& packed) {
  uint8_t* group = p.template group<F::kBits>(codes);
  if constexpr (F::kBits == 8) {
    store_bytes(group, p.n, uint64_t{packed.high} << 32 | packed.low);
  } else {
    store_bytes(group, ceil_div(p.n, 2), packed.low);
    if constexpr (F::kBits == 5)
      if (any(p.n)) *p.template tops<5>(codes) = static_cast<uint8_t>(packed.high);
    if constexpr (F::kBits == 6)
      store_bytes(p.template tops<6>(codes), ceil_div(p.n, 4), static_cast<uint16_t>(packed.high));
  }
}

template <class F, class P>
__device__ inline Packed load_codes(uint8_t* codes, const P& p) {
  const uint8_t* group = p.template group<F::kBits>(codes);
  if constexpr (F::kBits == 8) {
    const auto bytes = load_bytes<uint64_t>(group, p.n);
    return {static_cast<uint32_t>(bytes), static_cast<uint32_t>(bytes >> 32)};
  } else {
    Packed packed{load_bytes<uint32_t>(group, ceil_div(p.n, 2)), 0};
    if constexpr (F::kBits == 5) packed.high = any(p.n) ? *p.template tops<5>(codes) : 0u;
    if constexpr (F::kBits == 6) packed.high = load_bytes<uint16_t>(p.template tops<6>(codes), ceil_div(p.n, 4));
    return packed;
  }
}

// --- blocks ----------------------------------------------------------------------------------------------------------

// The larger magnitude; NaN if one is.
__device__ inline float greater_magnitude(float a, float b) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(fabsf(a)), "f"(fabsf(b)));
  return most;
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
__device__ inline uint32_t larger_magnitudes(const uint4& words) {
  return larger_magnitudes(larger_magnitudes(words.x, words.y), larger_magnitudes(words.z, words.w));
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

// The same of two blocks from pairs of bf16 (larger_magnitudes), both at once.
__device__ inline float amax_of_share(uint32_t first, uint32_t second, int lane) {
  uint32_t most = larger_magnitudes(bytes_of(first, second, 0x5410), bytes_of(first, second, 0x7632));
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2)
    most = larger_magnitudes(most, __shfl_xor_sync(kWholeWarp, most, other));
  return fabsf(lane < kLanes / 2 ? low_bf16(most) : high_bf16(most));
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

// The same where the blocks of a tensor are counted one after another.
struct ListOffsets {
  int begin[GlobalOffset::kRuns] = {};  // the part's block at which a run of rows begins
  int shift[GlobalOffset::kRuns] = {};  // what is added to get blocks of the whole
  FastDivmod per_row;                   // blocks of the part
  int skipped = 0;                      // of the whole's row, beside the part's
  bool in_sequence = true;              // one run of whole rows

  ListOffsets() = default;
  explicit ListOffsets(const Quantized& q, const GlobalOffset& global_offset) {
    const int64_t own = q.row.blocks(), of_whole = global_offset.blocks_per_row ? global_offset.blocks_per_row : own;
    per_row = FastDivmod(static_cast<uint32_t>(own));
    skipped = static_cast<int>(of_whole - own);
    for (int i = 0; i < GlobalOffset::kRuns; ++i) {
      const bool used = global_offset.begin[i] < global_offset.first_row + q.rows;
      begin[i] = used ? static_cast<int>((global_offset.begin[i] - global_offset.first_row) * own)
                      : std::numeric_limits<int>::max();
      shift[i] =
          static_cast<int>((global_offset.first_row + global_offset.shift[i]) * of_whole + global_offset.first_block);
      in_sequence &= skipped == 0 && (i == 0 || !used);
    }
  }
  // Block `block` of the part, counted in the whole tensor.
  __device__ int block(int block) const {
    if (in_sequence) return block + shift[0];
    int add = shift[0];
#pragma unroll
    for (int i = 1; i < GlobalOffset::kRuns; ++i)
      if (block >= begin[i]) add = shift[i];
    return block + add + static_cast<int>(per_row.divide(static_cast<uint32_t>(block))) * skipped;
  }
};

// x (zeros behind p.n) -> codes and scale, with the draws of the lane's group, or none.
template <class F, class P, class Rounded>
__device__ inline void encode(const QuantPtr& q, const P& p, const FloatVec8& x, const Rounded& rounding) {
  if constexpr (F::kScaled) {
    const Bf16 scale = group_scale<F>(block_amax(x));
    const Packed codes = encode_group<F>(x, group_reciprocal<F>(scale), rounding);
    if (any(p.n)) store_codes<F>(q.codes, p, carries_codes(scale) ? codes : Packed{});
    if (any(p.n) && p.lane == 0) q.scales[p.block] = scale;
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
    store8(reinterpret_cast<Number*>(p.template group<F::kBits>(q.codes)), p.n, rounded);
  }
}
// The same as `draws` says of row r.
template <class F, class P>
__device__ inline void encode(const QuantPtr& q, const P& p, const FloatVec8& x, const RngOffsets& draws, int64_t r) {
  if (draws.stochastic)
    encode<F>(q, p, x, draws.of(r, p));
  else
    encode<F>(q, p, x, Nearest{});
}

// The same of two blocks at once, to the nearest, for less: each half of the lanes finds the scale of one of them.
// `amax` is the largest magnitude of that one.
template <class F, class P>
__device__ inline void encode_two(const QuantPtr& q, const P (&places)[2], const FloatVec8 (&x)[2], float amax) {
  const bool second = places[0].lane >= kLanes / 2;
  const Bf16 scale = group_scale<F>(amax);
  const float mine = carries_codes(scale) ? group_reciprocal<F>(scale) : 0.0f;
  const float others = __shfl_xor_sync(kWholeWarp, mine, kLanes / 2);
  const float inverses[2] = {second ? others : mine, second ? mine : others};
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const Packed codes = encode_group<F>(x[k], inverses[k], Nearest{});
    const P& p = places[k];
    if (any(p.n)) store_codes<F>(q.codes, p, inverses[k] != 0.0f ? codes : Packed{});
  }
  if (places[0].lane % (kLanes / 2) == 0 && (second ? exists(places[1]) : exists(places[0])))
    q.scales[second ? places[1].block : places[0].block] = scale;
}
template <class F, class P>
__device__ inline void encode_two(const QuantPtr& q, const P (&places)[2], const FloatVec8 (&x)[2]) {
  if constexpr (F::kScaled) {
    float amax[2] = {group_amax(x[0]), group_amax(x[1])};
    encode_two<F>(q, places, x, amax_of_share(amax, places[0].lane));
  } else {
#pragma unroll
    for (int k = 0; k < 2; ++k) encode<F>(q, places[k], x[k], Nearest{});
  }
}
// The same where x are the numbers of bf16 words, whose largest are found in pairs.
template <class F, class P>
__device__ inline void encode_two(const QuantPtr& q, const P (&places)[2], const FloatVec8 (&x)[2],
                                  const uint4 (&words)[2]) {
  if constexpr (F::kScaled)
    encode_two<F>(q, places, x,
                  amax_of_share(larger_magnitudes(words[0]), larger_magnitudes(words[1]), places[0].lane));
  else
    encode_two<F>(q, places, x);
}

// A lane's share of a block as it lies in memory. Fetching is apart from decoding, so that several loads are on their
// way before arithmetic waits for the first.
template <class F, bool = F::kScaled>
struct Fetched {
  Packed codes;
  Bf16 scale;
};
template <class F>
struct Fetched<F, false> {
  Fetched8<typename F::Stored> numbers{};
};

template <class F, class P>
__device__ inline Fetched<F> fetch(const QuantPtr& q, const P& p) {
  // Asked first for short code, but where one flag decides for all arrays.
  if constexpr (!std::is_same_v<decltype(p.n), KnownCount>)
    if (!any(p.n)) return {};
  if constexpr (F::kScaled)
    return {load_codes<F>(q.codes, p), any(p.n) ? q.scales[p.block] : Bf16{}};
  else
    return {fetch8(reinterpret_cast<const typename F::Stored*>(p.template group<F::kBits>(q.codes)), p.n)};
}
// -> x, zeros where the lane has no numbers.
template <class F>
__device__ inline void decode(const Fetched<F>& fetched, FloatVec8& x) {
  if constexpr (F::kScaled)
    decode_group<F>(fetched.codes, to_float(fetched.scale), x);
  else
    unpack8(fetched.numbers, x);
}
template <class F, class P>
__device__ inline void decode(const QuantPtr& q, const P& p, FloatVec8& x) {
  decode<F>(fetch<F>(q, p), x);
}
// code · (scale · factor)
template <class F>
__device__ inline void decode_scaled(const Fetched<F>& fetched, float factor, FloatVec8& x) {
  if constexpr (F::kScaled) {
    decode_group<F>(fetched.codes, to_float(fetched.scale) * factor, x);
  } else {
    unpack8(fetched.numbers, x);
#pragma unroll
    for (float& number : x) number *= factor;
  }
}
// (code · scale) · factor
template <class F>
__device__ inline void decode_times(const Fetched<F>& fetched, float factor, FloatVec8& x) {
  if constexpr (F::kScaled)
    codec::decode_times<F>(fetched.codes, to_float(fetched.scale), factor, x);
  else
    decode_scaled<F>(fetched, factor, x);
}
// x += the numbers
template <class F>
__device__ inline void add_to(const Fetched<F>& fetched, FloatVec8& x) {
  if constexpr (F::kScaled) {
    add_group<F>(fetched.codes, to_float(fetched.scale), x);
  } else {
    FloatVec8 numbers;
    unpack8(fetched.numbers, numbers);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) x[i] += numbers[i];
  }
}

}  // namespace agoq::codec::cuda
