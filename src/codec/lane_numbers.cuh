// A lane's eight numbers, or fewer, as they lie in memory. Sixteen neighbouring lanes, half a warp, share a block of
// 128; eight numbers are one 16-byte access in bf16, and what shares one call of Philox and one word of packed codes.
#pragma once

#include <type_traits>

#include "codec/group.h"
#include "device/cuda.h"

namespace agoq::codec::cuda {

inline constexpr int kLanes = 16;  // that share a block
using codec::FloatVec8;
using codec::kGroup;  // numbers of a lane
inline constexpr unsigned kWholeWarp = 0xffffffffu;

template <class Word>
__host__ __device__ inline bool aligned(const void* p) {
  return (reinterpret_cast<uintptr_t>(p) & (sizeof(Word) - 1)) == 0;
}

// --- how many there are ----------------------------------------------------------------------------------------------

// A lane has 0 to 8 numbers: an int, whose address is looked at on every access; or, where that has been done for a
// tensor, this.
struct KnownCount {
  int n = 0;
  bool whole = false;  // all eight, at aligned addresses
};
// Or this where rows are made of whole blocks and their numbers and codes are aligned. No other way of reading and
// writing them is then compiled.
struct AllOrNone {
  bool all = false;
};

__device__ inline bool any(int n) {
  return n > 0;
}
__device__ inline bool any(KnownCount n) {
  return n.n > 0;
}
__device__ inline bool any(AllOrNone n) {
  return n.all;
}

// Whether there are all of `of`, and whether they can then be read and written as Words. (Of one function that answers
// both the compiler makes slower code.)
__device__ inline bool full(int n, int of = kGroup) {
  return n == of;
}
__device__ inline bool full(KnownCount n, int = kGroup) {
  return n.whole;
}
__device__ inline bool full(AllOrNone n, int = kGroup) {
  return n.all;
}
template <class Word, class Count>
__device__ inline bool as_words(const void* p, Count) {
  if constexpr (std::is_same_v<Count, int>) return aligned<Word>(p);
  return true;
}
// Otherwise, how many are.
__device__ inline int part(int n) {
  return n;
}
__device__ inline int part(KnownCount n) {
  return n.n;
}
__device__ constexpr int part(AllOrNone) {
  return 0;
}

__host__ __device__ constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}
__device__ constexpr AllOrNone ceil_div(AllOrNone n, int) {  // the bytes that have the codes of n numbers
  return n;
}

// --- numbers ---------------------------------------------------------------------------------------------------------

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
template <class Count>
__device__ inline uint4 fetch8(const Bf16* p, Count n) {
  if (full(n) && as_words<uint4>(p, n)) return *reinterpret_cast<const uint4*>(p);
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (i < part(n)) words[i / 2] |= static_cast<uint32_t>(p[i].bits) << (16 * (i % 2));
  return {words[0], words[1], words[2], words[3]};
}
template <class Count>
__device__ inline Float8 fetch8(const float* p, Count n) {
  if (full(n) && as_words<float4>(p, n))
    return {*reinterpret_cast<const float4*>(p), *(reinterpret_cast<const float4*>(p) + 1)};
  const int some = part(n);
  const auto number = [&](int i) { return i < some ? p[i] : 0.0f; };
  return {{number(0), number(1), number(2), number(3)}, {number(4), number(5), number(6), number(7)}};
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
// (Packed where it is known how: packed before, the words of many stores would fill registers.)
template <class Count>
__device__ inline void store8(Bf16* p, Count n, const FloatVec8& x) {
  if (full(n) && as_words<uint4>(p, n))
    return __stwb(reinterpret_cast<uint4*>(p), make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]),
                                                          pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])));
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (i < part(n)) p[i].bits = static_cast<uint16_t>(pack_bf16(x[i], 0.0f));
}
template <class Count>
__device__ inline void store8(float* p, Count n, const FloatVec8& x) {
  if (full(n) && as_words<float4>(p, n)) {
    reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (i < part(n)) p[i] = x[i];
}

// What fetch8 reads of numbers of 16 bits, written.
template <class Count>
__device__ inline void put8(Bf16* p, Count n, const uint4& w) {
  if (full(n) && as_words<uint4>(p, n)) return __stwb(reinterpret_cast<uint4*>(p), w);
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (i < part(n)) p[i].bits = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
}

// The first n of sizeof(Word) bytes.
template <class Word, class Count>
__device__ inline Word load_bytes(const uint8_t* p, Count n) {
  constexpr int kBytes = sizeof(Word);
  if (full(n, kBytes) && as_words<Word>(p, n)) return *reinterpret_cast<const Word*>(p);
  Word word = 0;
  const auto add = [&](int i) { word |= static_cast<Word>(static_cast<Word>(p[i]) << (8 * i)); };
  if constexpr (std::is_same_v<Count, int>) {  // a loop: with it SwiGLU's backward pass has fewer registers
    for (int i = 0; i < n; ++i) add(i);
  } else {
#pragma unroll
    for (int i = 0; i < kBytes; ++i)
      if (i < part(n)) add(i);
  }
  return word;
}
template <class Word, class Count>
__device__ inline void store_bytes(uint8_t* p, Count n, Word word) {
  constexpr int kBytes = sizeof(Word);
  if (full(n, kBytes) && as_words<Word>(p, n)) {
    *reinterpret_cast<Word*>(p) = word;
    return;
  }
  const auto put = [&](int i) { p[i] = static_cast<uint8_t>(word >> (8 * i)); };
  if constexpr (std::is_same_v<Count, int>) {  // likewise
    for (int i = 0; i < n; ++i) put(i);
  } else {
#pragma unroll
    for (int i = 0; i < kBytes; ++i)
      if (i < part(n)) put(i);
  }
}

}  // namespace agoq::codec::cuda
