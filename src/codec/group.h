// Eight numbers <-> one group of packed codes, in few instructions of a GPU; for host and device.
//
// The same codes as formats.h and the planes of docs/formats.md, bit for bit, for numbers whose block has the scale of
// its largest: they end so little beyond the largest level that rounding needs no limit (tests/codec/group_test.cc
// compares the two). What makes it cheap:
//
//   - Adding 2^23 to a number leaves its nearest integer in the low bits of the sum: codes come out of the FPU as
//   bytes.
//   - 65536ths plus a draw: the code is then the third byte, and no shift is needed.
//   - Bytes of several words become one word in one instruction, with their sign bits spread if asked for.
//   - What is divided by is known or short, so that two or three FMAs round a quotient exactly as a division does.
#pragma once

#include <cmath>

#include "codec/formats.h"

namespace agoq::codec {

inline constexpr uint32_t kOneBits = std::bit_cast<uint32_t>(1.0f);

inline constexpr int kGroup = 8;  // numbers that share a call of Philox
using FloatVec8 = float[kGroup];

// A group's codes as they lie in memory. 8 bits: codes 0 to 3 and 4 to 7; otherwise its nibbles, and its bits of the
// plane above.
struct Packed {
  uint32_t low = 0, high = 0;
};

// --- instructions ---------------------------------------------------------------------------------------------------

// Byte i of the result is the byte of b:a that nibble i of `which` names; with 8 added, eight times its sign bit.
AGOQ_HD inline uint32_t bytes_of(uint32_t a, uint32_t b, uint32_t which) {
#if defined(__CUDA_ARCH__)
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(which));
  return bytes;
#else
  const uint64_t from = uint64_t{b} << 32 | a;
  uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t selector = which >> (4 * i) & 15u;
    const auto byte = static_cast<uint32_t>(from >> (8 * (selector & 7u))) & 255u;
    bytes |= (selector & 8u ? (byte >> 7) * 255u : byte) << (8 * i);
  }
  return bytes;
#endif
}

// The greatest integer up to x, plus 2^23, of which it is the last bits, for 0 <= x < 2^23.
AGOQ_HD inline float floor_in_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __fadd_rd(x, 0x1p23f);
#else
  return std::floor(x) + 0x1p23f;
#endif
}

// 1/x within 2^-22 of itself, for normal x and 1/x.
AGOQ_HD inline float rough_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

// The cube root of 0 <= x < 2^24 within 0.01.
AGOQ_HD inline float rough_cube_root(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(y * (1.0f / 3.0f)));
  return y;
#else
  return std::cbrt(x);
#endif
}

// --- exact quotients ------------------------------------------------------------------------------------------------

// 1/b as IEEE division rounds it, for b of at most 18 significant bits, from any y within 2^-22 of it. The error of one
// step of Newton is below 2^-44, and no 1/b comes so near to the middle between two numbers.
AGOQ_HD inline float short_reciprocal(float b, float y) {
  return multiply_add(multiply_add(-b, y, 1.0f), y, y);
}

// a/b likewise: y is short_reciprocal(b), the remainder of the first quotient is exact, and corrects it.
AGOQ_HD inline float short_quotient(float a, float b, float y) {
  const float q = a * y;
  return multiply_add(multiply_add(-b, q, a), y, q);
}

// scale_of<F>(amax). Exponents are subtracted as integers, so nothing under- or overflows. Where scales are powers of
// two so are significands: only which one is larger matters. Elsewhere their quotient is that of IEEE division (all of
// them: group_test.cc).
template <class F>
AGOQ_HD inline Bf16 group_scale(float amax) {
  constexpr int32_t kStep = F::kScaleStep, kLeast = 0x0080, kMost = max_scale_bits<F>();
  const uint32_t bits = std::bit_cast<uint32_t>(amax);
  uint32_t quotient = bits + (0x3f800000u - std::bit_cast<uint32_t>(F::max()));  // wraps for a NaN
  if constexpr (F::kScaleStep != kPowerOfTwoStep) {
    const uint32_t unit = (bits & 0x007fffffu) | 0x3f800000u;  // in [1, 2)
    quotient =
        std::bit_cast<uint32_t>(short_quotient(std::bit_cast<float>(unit), F::max(), 1.0f / F::max())) + bits - unit;
  }
  const uint32_t above = quotient + static_cast<uint32_t>(kStep - 1);
  const int32_t up = static_cast<int32_t>(above & static_cast<uint32_t>(-kStep)) >> 16;
  const int32_t kept = up < kLeast ? kLeast : up > kMost ? kMost : up;
  const int32_t finite = bits == 0 ? 0 : kept;
  return Bf16{static_cast<uint16_t>(bits < kInfBits ? finite : int32_t{kNanScale})};
}

// reciprocal(scale) of a scale that carries codes.
template <class F>
AGOQ_HD inline float group_reciprocal(Bf16 scale) {
  const float s = to_float(scale);
  if constexpr (F::kScaleStep == kPowerOfTwoStep)
    return std::bit_cast<float>((254u << 23) - std::bit_cast<uint32_t>(s));
  else if constexpr (max_scale_bits<F>() < 0x7e80u)  // below 2^126: the reciprocal is no subnormal number
    return short_reciprocal(s, rough_reciprocal(s));
  else
    return 1.0f / s;
}

// --- bytes ----------------------------------------------------------------------------------------------------------

using Words = uint32_t[kGroup];

// Byte `kByte` of words[first], [first + kStep], [first + 2 kStep], [first + 3 kStep]; kSpread: eight times its sign.
template <int kByte, int kStep, bool kSpread = false>
AGOQ_HD inline uint32_t gather(const Words& words, int first) {
  constexpr uint32_t kOne = kByte | (kSpread ? 8 : 0), kTwo = kOne | (kOne + 4) << 4;
  return bytes_of(bytes_of(words[first], words[first + kStep], kTwo),
                  bytes_of(words[first + 2 * kStep], words[first + 3 * kStep], kTwo), 0x5410);
}

// Byte `kByte` of every word as a code of 8 bits, or of 4.
template <int kByte>
AGOQ_HD inline Packed pack8(const Words& words) {
  return {gather<kByte, 1>(words, 0), gather<kByte, 1>(words, 4)};
}
template <int kByte>
AGOQ_HD inline Packed pack4(const Words& words) {
  const uint32_t even = gather<kByte, 2>(words, 0), odd = gather<kByte, 2>(words, 1);
  return {(even & 0x0f0f0f0fu) | (odd << 4 & 0xf0f0f0f0u), 0};
}
template <int kByte, int kBits>
AGOQ_HD inline Packed pack(const Words& words) {
  return kBits == 4 ? pack4<kByte>(words) : pack8<kByte>(words);
}
// Codes as bytes -> planes.
template <int kBits>
AGOQ_HD inline Packed pack_bytes(const Packed& bytes) {
  const uint64_t codes = uint64_t{bytes.high} << 32 | bytes.low;
  if constexpr (kBits == 8)
    return bytes;
  else if constexpr (kBits == 6)
    return {pack_nibbles(codes), pack_tops2(codes)};
  else if constexpr (kBits == 5)
    return {pack_nibbles(codes), pack_tops1(codes)};
  else
    return {pack_nibbles(codes), 0};
}

// The bytes of `magnitudes` (0 to 127) with their sign changed where those of `negative` are 255 and not 0: -m is the
// complement of m - 1, which borrows nothing from the next byte with 128 added for a while.
AGOQ_HD inline uint32_t negate_bytes(uint32_t magnitudes, uint32_t negative) {
  const uint32_t less = magnitudes + 0x80808080u - (negative & 0x01010101u);
  return less ^ 0x80808080u ^ negative;
}

// Byte i of `bytes` as the number 1 + byte / 32768.
AGOQ_HD inline float byte_number(uint32_t bytes, int i) {
  return std::bit_cast<float>(bytes_of(bytes, kOneBits, 0x7604u | static_cast<uint32_t>(i) << 4));
}
// byte - minus, exact.
AGOQ_HD inline float byte_less(uint32_t bytes, int i, float minus) {
  return multiply_add(byte_number(bytes, i), 0x1p15f, -(0x1p15f + minus));
}

// A byte that is a sign and seven bits as ±(2^23 + those). The middle bytes are the sign of what has none.
AGOQ_HD inline float signed_byte_number(uint32_t bytes, int i) {
  const auto byte = static_cast<uint32_t>(i);
  return std::bit_cast<float>(
      bytes_of(bytes & 0x7f7f7f7fu, (bytes & 0x80808080u) | 0x4b4b4b4bu, 0x4880u + byte * 0x1111u));
}
// A magnitude with the sign of `number`.
AGOQ_HD inline float with_sign_of(float number, float magnitude) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | (std::bit_cast<uint32_t>(number) & ~kAbsMask));
}

inline constexpr float kUnit = 0x1p23f;  // numbers from here to 2^24 are a unit apart
inline constexpr uint32_t kUnitBits = std::bit_cast<uint32_t>(kUnit);

AGOQ_HD inline float magnitude(float y) {
#if defined(__CUDA_ARCH__)
  return fabsf(y);  // costs nothing where an instruction of the FPU takes it
#else
  return std::bit_cast<float>(std::bit_cast<uint32_t>(y) & kAbsMask);
#endif
}
AGOQ_HD inline float lesser(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}

// The least of three numbers from kUnit on, whose order is that of their bits.
AGOQ_HD inline float least_unit(float a, float b, float c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return __uint_as_float(__vimin3_u32(__float_as_uint(a), __float_as_uint(b), __float_as_uint(c)));
#else
  return lesser(lesser(a, b), c);
#endif
}

AGOQ_HD inline float greater(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}

// --- encode ---------------------------------------------------------------------------------------------------------

// scaled<F>(x, inv).
template <class F>
AGOQ_HD inline float group_scaled(float x, float inv) {
  if constexpr (F::kSigned)
    return x * inv;
  else
    return greater(magnitude(x * inv), x != 0.0f ? F::least() : 0.0f);
}

// What a group rounds with: nothing (nearest), or the words of its draws.
struct Nearest {
  static constexpr bool kDraws = false, kBounded = false;
};
struct Stochastic {
  static constexpr bool kDraws = true, kBounded = false;
  Philox4 words;
  AGOQ_HD uint32_t draw(int i) const { return draw16(words, i); }
  // centred(draw(i)): behind the bits of 1, a draw is that many parts in 2^23.
  AGOQ_HD float centre(int i) const {
    const uint32_t odd = words[static_cast<size_t>(i / 2)] | 0x00010001u;
    const auto number = std::bit_cast<float>(bytes_of(odd, kOneBits, i % 2 ? 0x7632u : 0x7610u));
    return multiply_add(number, 128.0f, -128.5f);
  }
  // bits + draw(i)
  AGOQ_HD uint32_t added_to(uint32_t bits, int i) const {
#if defined(__CUDA_ARCH__)
    return __dp2a_lo(words[static_cast<size_t>(i / 2)], i % 2 ? 0x0100u : 0x0001u, bits);  // one half once, one not
#else
    return bits + draw(i);
#endif
  }
};

// Whether |x| / scale <= F::max() for all of a block, so that stochastic rounding needs no limit: always, but for NaNs
// and for numbers that are too large for the largest scale. False for zero blocks, too.
template <class F>
AGOQ_HD inline bool bounds_numbers(Bf16 scale) {
  return scale.bits - 1u < max_scale_bits<F>() - 1u;
}
// Stochastic where bounds_numbers.
struct Bounded : Stochastic {
  static constexpr bool kBounded = true;
};

// The code of a magnitude, e2m1, e2m2 or e2m3, plus 2^23, in units of 1 / kFine. Codes are a concave function of
// magnitudes, the least of one straight line for each exponent; rounding keeps order, so the least of the rounded lines
// is the code.
template <class F, int kFine>
AGOQ_HD inline float code_of_magnitude(float a) {
  constexpr float kSlope = kFine << F::kMantissaBits;
  const float low = multiply_add(a, kSlope, kUnit), middle = multiply_add(a, kSlope / 2, kUnit + kSlope);
  const float high = multiply_add(a, kSlope / 4, kUnit + 2 * kSlope);
  return least_unit(low, middle, high);
}

// 2^23 + fine, in 65536ths of a code up to the largest, plus the draw: the code is its third byte.
template <class F>
AGOQ_HD inline uint32_t draw_up(float fine, uint32_t draw) {
  constexpr uint32_t kMost = kUnitBits + (F::kMaxCode << 16);
  const uint32_t bits = std::bit_cast<uint32_t>(fine);
  return (bits < kMost ? bits : kMost) + draw;
}

// The bytes of codes with the signs of x on top of their kBits bits.
template <int kBits>
AGOQ_HD inline Packed with_signs(const Packed& bytes, const Words& x) {
  constexpr int kDown = 8 - kBits;
  return {bytes.low | (gather<3, 1>(x, 0) & 0x80808080u) >> kDown,
          bytes.high | (gather<3, 1>(x, 4) & 0x80808080u) >> kDown};
}

// Of x · inv, whose signs are those of x.
template <class F, class Rounded>
AGOQ_HD inline Packed encode_short(const FloatVec8& x, float inv, const Rounded& rounding) {
  constexpr int kByte = Rounded::kDraws ? 2 : 0;
  Words signs, codes;
  for (int i = 0; i < kGroup; ++i) {
    signs[i] = std::bit_cast<uint32_t>(x[i]);
    const float a = magnitude(x[i]) * inv;
    if constexpr (Rounded::kDraws)
      codes[i] = draw_up<F>(code_of_magnitude<F, 65536>(a), rounding.draw(i));
    else
      codes[i] = std::bit_cast<uint32_t>(code_of_magnitude<F, 1>(a));
  }
  if constexpr (F::kBits == 4) {
    const uint32_t even = gather<3, 2, true>(signs, 0), odd = gather<3, 2>(signs, 1);
    return {pack4<kByte>(codes).low | (even & 0x08080808u) | (odd & 0x80808080u), 0};
  } else {
    return pack_bytes<F::kBits>(with_signs<F::kBits>(pack8<kByte>(codes), signs));
  }
}

template <class F, class Rounded>
AGOQ_HD inline Packed encode_integers(const Words& y, const Rounded& rounding) {
  Words codes;
  if constexpr (Rounded::kDraws) {
    for (int i = 0; i < kGroup; ++i) {
      const float fine = multiply_add(magnitude(std::bit_cast<float>(y[i])), 65536.0f, kUnit);
      if constexpr (Rounded::kBounded)
        codes[i] = rounding.added_to(std::bit_cast<uint32_t>(fine), i);
      else
        codes[i] = draw_up<F>(fine, rounding.draw(i));
    }
    const Packed bytes = pack8<2>(codes);
    return pack_bytes<F::kBits>(
        Packed{negate_bytes(bytes.low, gather<3, 1, true>(y, 0)), negate_bytes(bytes.high, gather<3, 1, true>(y, 4))});
  } else {
    for (int i = 0; i < kGroup; ++i) codes[i] = std::bit_cast<uint32_t>(std::bit_cast<float>(y[i]) + 1.5f * kUnit);
    return pack<0, F::kBits>(codes);
  }
}

// 2^23 + the code of 0 <= a to the nearest, as bits. The estimate of the root may be wrong by less than 1/2: its
// nearest integer is the root or the one above.
AGOQ_HD inline uint32_t nearest_cube(float a, float estimate) {
  const float nearest = (estimate + kUnit) - kUnit;
  const float root = nearest * nearest * nearest > a ? nearest - 1.0f : nearest;
  const float above = a - root * root * root, gap = multiply_add(3.0f * root, root + 1.0f, 1.0f);
  return std::bit_cast<uint32_t>(root + kUnit) + (above + above > gap);
}

// 2^23 + the code of 0 <= a with a draw that is `t` when centred, as bits, from an estimate of the root within 0.01.
// Where a number is a part t + 1/2 of the way from the cube of an integer c to the next, its root is at least c + t +
// 1/2 and at most 0.385 more. So the code is the greatest integer up to root - t, or the next; and one comparison
// decides: that of the format if the integer is the greatest whose cube is at most a, and far from equal if not. A
// difference below zero, where both are 0, is as good as its magnitude.
AGOQ_HD inline uint32_t drawn_cube(float a, float estimate, float t) {
  const float low = floor_in_bits(magnitude(estimate - t));
  const float before = before_part_of_cubes(a, low - (kUnit - 0.5f), t);
  return std::bit_cast<uint32_t>(low) + (std::bit_cast<uint32_t>(before) >> 31);
}

template <class F, class Rounded>
AGOQ_HD inline Packed encode_cubes(const Words& y, const Rounded& rounding) {
  Words codes;
  for (int i = 0; i < kGroup; ++i) {
    const float size = magnitude(std::bit_cast<float>(y[i]));
    const float a = Rounded::kBounded ? size : lesser(size, F::max()), estimate = rough_cube_root(a);
    if constexpr (Rounded::kDraws)
      codes[i] = drawn_cube(a, estimate, rounding.centre(i));
    else
      codes[i] = nearest_cube(a, estimate);
  }
  return F::kSigned ? with_signs<8>(pack8<0>(codes), y) : pack8<0>(codes);
}

template <class F, class Rounded>
AGOQ_HD inline Packed encode_others(const Words& y, const Rounded& rounding) {
  Words codes;
  for (int i = 0; i < kGroup; ++i) {
    const float number = std::bit_cast<float>(y[i]);
    if constexpr (Rounded::kDraws)
      codes[i] = F::encode(number, rounding.draw(i));
    else
      codes[i] = F::encode(number);
  }
  return pack<0, F::kBits>(codes);
}

// Eight numbers x of a block whose scale has the reciprocal inv -> codes.
template <class F, class Rounded>
AGOQ_HD inline Packed encode_group(const FloatVec8& x, float inv, const Rounded& rounding) {
  if constexpr (F::kLevels == Levels::Short) {
    return encode_short<F>(x, inv, rounding);
  } else {
    Words y;
    for (int i = 0; i < kGroup; ++i) y[i] = std::bit_cast<uint32_t>(group_scaled<F>(x[i], inv));
    if constexpr (F::kLevels == Levels::Integer)
      return encode_integers<F>(y, rounding);
    else if constexpr (F::kLevels == Levels::Cube)
      return encode_cubes<F>(y, rounding);
    else
      return encode_others<F>(y, rounding);
  }
}

// --- decode ---------------------------------------------------------------------------------------------------------

// Code i, all its bits.
template <int kBits>
AGOQ_HD inline uint32_t code_of(const Packed& packed, int i) {
  if constexpr (kBits == 8) {
    return (i < 4 ? packed.low : packed.high) >> (8 * (i & 3)) & 255u;
  } else {
    constexpr int kTopBits = kBits - 4;
    const uint32_t top = packed.high >> (kTopBits * i) & ((1u << kTopBits) - 1);
    return (packed.low >> (4 * i) & 15u) | top << 4;
  }
}
// Code i with its first bit at bit 31; there may be others below.
template <int kBits>
AGOQ_HD inline uint32_t raised_code(const Packed& packed, int i) {
  if constexpr (kBits == 8)
    return (i < 4 ? packed.low : packed.high) << (8 * (3 - (i & 3)));
  else if constexpr (kBits == 4)
    return packed.low << (4 * (7 - i));
  else
    return code_of<kBits>(packed, i) << (32 - kBits);
}

// Four codes of e2m1, nibbles, as numbers. The first byte of a number in fp16 is all that it needs, and a GPU looks up
// four bytes at once: 7 bits, of positive numbers and of negative ones. A lookup gives ones where a number has the
// other sign.
AGOQ_HD inline void short_numbers(uint32_t codes, float* x) {
#if defined(__CUDA_ARCH__)
  const uint32_t positive = bytes_of(0x9f9e9c80u, 0xa3a2a1a0u, codes);
  const uint32_t negative = bytes_of(0xdfdedcc0u, 0xe3e2e1e0u, codes ^ 0x8888u);
  const uint32_t bytes = (positive & negative & 0x7f7f7f7fu) << 1;
  for (int i = 0; i < 4; i += 2)
    asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(x[i]), "=f"(x[i + 1])
        : "r"(bytes_of(bytes, 0, i == 0 ? 0x1404u : 0x3424u)));
#else
  for (int i = 0; i < 4; ++i) x[i] = Minifloat<4, 1, 0, 7>::decode(codes >> (4 * i) & 15u);
#endif
}

// F::decode of all codes, times `scale`; of formats other than e2m1.
template <class F>
AGOQ_HD inline void decode_others(const Packed& packed, float scale, FloatVec8& x) {
  for (int i = 0; i < kGroup; ++i) {
    if constexpr (F::kLevels == Levels::Integer && F::kBits == 8) {
      x[i] = byte_less((i < 4 ? packed.low : packed.high) ^ 0x80808080u, i & 3, 128.0f) * scale;
    } else if constexpr (F::kLevels == Levels::Integer) {
      const uint32_t nibbles = packed.low ^ 0x88888888u;
      x[i] = byte_less((i & 1 ? nibbles >> 4 : nibbles) & 0x0f0f0f0fu, i / 2, 8.0f) * scale;
    } else if constexpr (F::kLevels == Levels::Cube) {
      const uint32_t bytes = i < 4 ? packed.low : packed.high;
      if constexpr (F::kSigned) {
        const float number = signed_byte_number(bytes, i & 3), root = magnitude(number) - kUnit;
        x[i] = with_sign_of(number, root * root * root * scale);
      } else {
        const float root = byte_less(bytes, i & 3, 0.0f);
        x[i] = root * root * root * scale;
      }
    } else if constexpr (F::kLevels == Levels::Table) {
      x[i] = F::decode(code_of<F::kBits>(packed, i)) * scale;
    } else {
      x[i] = F::decode_raised(raised_code<F::kBits>(packed, i)) * scale;
    }
  }
}

// F::decode of all codes, times `scale`.
template <class F>
AGOQ_HD inline void decode_group(const Packed& packed, float scale, FloatVec8& x) {
  if constexpr (F::kLevels == Levels::Short && F::kBits == 4) {
    short_numbers(packed.low, x);
    short_numbers(packed.low >> 16, x + 4);
    for (float& number : x) number *= scale;
  } else {
    decode_others<F>(packed, scale, x);
  }
}

// Int8 codes times scale / 32768: 1 + code / 32768 comes out of one instruction; times the scale and less the scale it
// is exact. 32768 is left to what follows, since scale · 32768 might overflow.
AGOQ_HD inline void decode_integers(const Packed& packed, float scale, FloatVec8& x) {
  constexpr float kZero = 1.0f + 0x1p-8f;  // 128 / 32768 more, so that codes are not negative
  const float zero = -kZero * scale;
  for (int i = 0; i < kGroup; ++i)
    x[i] = multiply_add(byte_number((i < 4 ? packed.low : packed.high) ^ 0x80808080u, i & 3), scale, zero);
}

// Those numbers times `factor`, each product rounded once; factor · 32768 is finite.
template <class F>
AGOQ_HD inline void decode_times(const Packed& packed, float scale, float factor, FloatVec8& x) {
  if constexpr (F::kLevels == Levels::Integer && F::kBits == 8) {
    decode_integers(packed, scale, x);
    factor *= 0x1p15f;
  } else {
    decode_group<F>(packed, scale, x);
  }
  for (int i = 0; i < kGroup; ++i) x[i] *= factor;
}

// x += those numbers, each sum rounded once.
template <class F>
AGOQ_HD inline void add_group(const Packed& packed, float scale, FloatVec8& x) {
  if constexpr (F::kLevels == Levels::Integer && F::kBits == 8) {
    FloatVec8 partial_sum;
    decode_integers(packed, scale, partial_sum);
    for (int i = 0; i < kGroup; ++i) x[i] = multiply_add(partial_sum[i], 0x1p15f, x[i]);
  } else {
    FloatVec8 partial_sum;
    decode_group<F>(packed, scale, partial_sum);
    for (int i = 0; i < kGroup; ++i) x[i] += partial_sum[i];
  }
}

}  // namespace agoq::codec
