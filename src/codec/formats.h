// What a code means: one struct per codec, for host and device, bit for bit the same on both.
//
// A block of up to 128 numbers shares one bf16 scale. Arithmetic is fp32 with IEEE division and without FMA (but where
// one is written):
//
//   amax = max |x|;  scale = scale_of<F>(amax);  inv = reciprocal(scale);  code = F::encode(scaled<F>(x, inv) [, draw])
//   x'   = F::decode(code) * to_float(scale)
//
// A block with scale 0 (all zeros) or NaN (a NaN or Inf inside) has all codes zero. Code 0 means 0 in every format.
// Nearest rounding takes ties to even. Stochastic rounding measures the number in 65536ths of the step between its
// neighbours (to nearest even), adds a 16-bit draw and shifts it away: unbiased to 2^-17 of a step. Cubes, whose steps
// would take a division, compare with the draw's part of the step instead, and are unbiased to 2^-16.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "base/dtype.h"
#include "codec/quantized.h"

namespace agoq::codec {

inline constexpr uint32_t kAbsMask = 0x7fffffffu;
inline constexpr uint32_t kInfBits = 0x7f800000u;
inline constexpr uint16_t kNanScale = 0x7fc0;
// Steps between neighbouring scales, in the bits of an fp32 number.
inline constexpr uint32_t kBf16Step = 1u << 16;
inline constexpr uint32_t kPowerOfTwoStep = 1u << 23;

// What a format's levels are. Short: a float with two bits of exponent, the lowest 0.
enum class Levels : uint8_t { Float, Short, Integer, Table, Cube };

// 0 <= y < 2^23 to the nearest integer, ties to even: the FPU rounds where 2^23 ends the significand.
AGOQ_HD constexpr uint32_t to_nearest(float y) {
  return std::bit_cast<uint32_t>(y + 0x1p23f) - std::bit_cast<uint32_t>(0x1p23f);
}

// `fine` is a non-negative number in 65536ths of a step; up with probability (fine mod 65536) / 65536.
AGOQ_HD constexpr uint32_t round_up_by(float fine, uint32_t draw) {
  return (to_nearest(fine) + draw) >> 16;
}

AGOQ_HD inline float multiply_add(float a, float b, float c) {  // a·b + c, rounded once
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

// Eight 16-bit draws for the eight elements of a group (RandomKey::draw). Micro-batches 2i and 2i+1 share a draw, the
// second as its mirror image 65535 - draw: each rounds without bias, and where the first errs upwards the second tends
// to err downwards, which halves the variance of their sum.
//
// The second moments of a group take the draws of the first ones, its last four numbers those of the first four and
// the other way round: one call serves both, and the two draws of a number are independent.
AGOQ_HD inline Philox4 halves_exchanged(const Philox4& words) {
  return {words[2], words[3], words[0], words[1]};
}
AGOQ_HD inline Philox4 rounding_draws(RandomKey key, uint64_t group) {
  const bool second = key.stream == RngStream::SecondMoment;
  if (second) key.stream = RngStream::FirstMoment;
  const uint32_t mirror = 0u - (key.micro_batch & 1u);
  key.micro_batch &= ~1u;
  Philox4 words = key.draw(group);
  for (uint32_t& word : words) word ^= mirror;
  return second ? halves_exchanged(words) : words;
}

// rounding_draws for many groups of one key (not of SecondMoment): the keys of the rounds are made once, with the
// mirror in the last of them.
class PreparedRng {
 public:
  PreparedRng() = default;
  explicit PreparedRng(const RandomKey& key) : key_(key), mirror_(0u - (key.micro_batch & 1u)) {
    key_.micro_batch &= ~1u;
    rounds_[0] = key_.first_key();
    for (size_t round = 1; round < kPhiloxRounds; ++round) rounds_[round] = next_key(rounds_[round - 1]);
    for (uint32_t& word : rounds_.back()) word ^= mirror_;
  }
  AGOQ_HD Philox4 of(uint64_t group) const { return of(key_.tensor, group); }
  AGOQ_HD Philox4 of(uint32_t tensor, uint64_t group) const {  // of another tensor
    RandomKey key = key_;
    key.tensor = tensor;
    Philox4 words = key.counter(group);
    for (size_t round = 0; round < kPhiloxRounds; ++round) words = philox_round(words, rounds_[round]);
    return {words[0], words[1] ^ mirror_, words[2], words[3] ^ mirror_};
  }

 private:
  RandomKey key_;
  uint32_t mirror_ = 0;
  std::array<PhiloxKey, kPhiloxRounds> rounds_{};
};

// Sign and magnitude with kMantissa explicit bits; magnitudes below 2^kMinExponent are evenly spaced (subnormal).
// Codes of equal sign are in the order of their values, so rounding up is adding one, also across an exponent.
template <int kCodeBits, int kMantissa, int kMinExponent, uint32_t kLargestCode, uint32_t kStepOfScale = kBf16Step>
struct Minifloat {
  static constexpr int kBits = kCodeBits;
  static constexpr bool kScaled = true;
  static constexpr uint32_t kScaleStep = kStepOfScale;
  static constexpr bool kSigned = true;
  static constexpr uint32_t kMaxCode = kLargestCode;  // of the magnitude

  static constexpr Levels kLevels = kBits - kMantissa == 3 && kMinExponent == 0 ? Levels::Short : Levels::Float;
  static constexpr int kMantissaBits = kMantissa;

  // The code's bits raised to the top of a word, with any below: moved to their places in an fp32 number, which is
  // subnormal where the code is, and costs a GPU nothing.
  AGOQ_HD static constexpr float decode_raised(uint32_t raised) {
    constexpr int kDown = 8 - (kBits - 1 - kMantissa);
    constexpr uint32_t kSavedTensors = (kSignBit - 1) << (23 - kMantissa) | ~kAbsMask;
    const uint32_t moved = static_cast<uint32_t>(static_cast<int32_t>(raised) >> kDown) & kSavedTensors;
    return std::bit_cast<float>(moved) * std::bit_cast<float>(kLowest + (126u << 23));
  }
  AGOQ_HD static constexpr float decode(uint32_t code) {
    const uint32_t magnitude = code & (kSignBit - 1);
    // A normal number's bits, moved; a subnormal one gets a leading one too many, and half its weight.
    const float moved = std::bit_cast<float>((magnitude << (23 - kMantissa)) + (kLowest - (1u << 23)));
    const float below = moved - std::bit_cast<float>(kLowest - (1u << 23));
    const float value = magnitude >> kMantissa ? moved : below + below;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | (code & kSignBit) << (32 - kBits));
  }
  AGOQ_HD static constexpr uint32_t encode(float y) {
    const uint32_t bits = std::bit_cast<uint32_t>(y);
    const uint32_t exponent = exponent_of(bits);
    // The number in units of the step 2^(exponent - kMantissa).
    const float units = std::bit_cast<float>(bits & kAbsMask) * power(kMantissa, exponent);
    return finish(bits, exponent, to_nearest(units));
  }
  AGOQ_HD static constexpr uint32_t encode(float y, uint32_t draw) {
    const uint32_t bits = std::bit_cast<uint32_t>(y);
    const uint32_t exponent = exponent_of(bits);
    const float fine = std::bit_cast<float>(bits & kAbsMask) * power(kMantissa + 16, exponent);
    return finish(bits, exponent, round_up_by(fine, draw));
  }

  AGOQ_HD static constexpr float max() { return decode(kMaxCode); }
  AGOQ_HD static constexpr float least() { return decode(1); }  // smallest magnitude above zero

 private:
  static constexpr uint32_t kSignBit = 1u << (kBits - 1);
  static constexpr uint32_t kLowest = static_cast<uint32_t>(127 + kMinExponent) << 23;

  AGOQ_HD static constexpr uint32_t exponent_of(uint32_t bits) {
    const uint32_t exponent = bits & kInfBits;
    return exponent > kLowest ? exponent : kLowest;
  }
  // 2^shift / 2^exponent, exact.
  AGOQ_HD static constexpr float power(int shift, uint32_t exponent) {
    return std::bit_cast<float>((static_cast<uint32_t>(254 + shift) << 23) - exponent);
  }
  AGOQ_HD static constexpr uint32_t finish(uint32_t bits, uint32_t exponent, uint32_t units) {
    const uint32_t magnitude = units + ((exponent - kLowest) >> (23 - kMantissa));
    const uint32_t code = magnitude < kMaxCode ? magnitude : kMaxCode;
    return code | (bits >> 31) << (kBits - 1);
  }
};

// Two's complement integers from -kLargest to kLargest.
template <Codec kName, int kCodeBits>
struct Integer {
  static constexpr Codec kCodec = kName;
  static constexpr int kBits = kCodeBits;
  static constexpr bool kScaled = true;
  static constexpr uint32_t kScaleStep = kBf16Step;
  static constexpr bool kSigned = true;
  static constexpr uint32_t kMaxCode = (1u << (kBits - 1)) - 1;
  static constexpr Levels kLevels = Levels::Integer;

  AGOQ_HD static constexpr float decode(uint32_t code) {
    return static_cast<float>(static_cast<int32_t>(code << (32 - kBits)) >> (32 - kBits));
  }
  AGOQ_HD static constexpr uint32_t encode(float y) {
    const uint32_t bits = std::bit_cast<uint32_t>(y);
    return finish(bits, to_nearest(std::bit_cast<float>(bits & kAbsMask)));
  }
  AGOQ_HD static constexpr uint32_t encode(float y, uint32_t draw) {
    const uint32_t bits = std::bit_cast<uint32_t>(y);
    return finish(bits, round_up_by(std::bit_cast<float>(bits & kAbsMask) * 65536.0f, draw));
  }

  AGOQ_HD static constexpr float max() { return static_cast<float>(kMaxCode); }
  AGOQ_HD static constexpr float least() { return 1.0f; }

 private:
  AGOQ_HD static constexpr uint32_t finish(uint32_t bits, uint32_t units) {
    const uint32_t magnitude = units < kMaxCode ? units : kMaxCode;
    const uint32_t sign = bits >> 31;
    return ((magnitude ^ (0u - sign)) + sign) & ((1u << kBits) - 1);
  }
};

// NormalFloat4 (Dettmers et al. 2023): quantiles of a normal distribution. Codes are its indices minus that of zero,
// modulo 16: code 0 is 0, 1 to 8 the positive values rising to 1, 9 to 15 the negative ones rising from -1.
struct NormalFloat4 {
  static constexpr Codec kCodec = Codec::Nf4;
  static constexpr int kBits = 4;
  static constexpr bool kScaled = true;
  static constexpr uint32_t kScaleStep = kBf16Step;
  static constexpr bool kSigned = true;
  static constexpr Levels kLevels = Levels::Table;

  AGOQ_HD static constexpr float value(uint32_t index) {
    constexpr float kValues[16] = {
        -1.0f,         -0.696192801f, -0.525073051f, -0.394917488f, -0.284441382f, -0.184773430f, -0.0910500363f, 0.0f,
        0.0795802996f, 0.160930201f,  0.246112302f,  0.337915242f,  0.440709829f,  0.562617004f,  0.722956836f,   1.0f};
    return kValues[index];
  }
  AGOQ_HD static constexpr float decode(uint32_t code) { return value((code + kZero) & 15); }
  AGOQ_HD static constexpr uint32_t encode(float y) { return nearest(y, std::make_index_sequence<15>{}); }
  AGOQ_HD static constexpr uint32_t encode(float y, uint32_t draw) {
    return stochastic(y, draw, std::make_index_sequence<14>{});
  }

  AGOQ_HD static constexpr float max() { return 1.0f; }
  AGOQ_HD static constexpr float least() { return value(8); }

 private:
  static constexpr uint32_t kZero = 7;  // index of 0

  // Constants by index, so that the comparisons below unroll into vector code.
  template <size_t I>
  static constexpr float kValue = value(I);
  template <size_t I>
  static constexpr float kMiddle = 0.5f * (value(I) + value(I + 1));
  template <size_t I>
  static constexpr float kSteps = 65536.0f / (value(I + 1) - value(I));

  template <size_t... I>
  AGOQ_HD static constexpr uint32_t nearest(float y, std::index_sequence<I...>) {
    return ((y > kMiddle<I> ? 1u : 0u) + ... + (0u - kZero)) & 15;
  }
  template <size_t... I>
  AGOQ_HD static constexpr uint32_t stochastic(float y, uint32_t draw, std::index_sequence<I...>) {
    const uint32_t index = ((y >= kValue<I + 1> ? 1u : 0u) + ... + 0u);
    float low = kValue<0>, steps = kSteps<0>;
    ((low = y >= kValue<I + 1> ? kValue<I + 1> : low, steps = y >= kValue<I + 1> ? kSteps<I + 1> : steps), ...);
    const float fine = (y - low) * steps;
    const float floor = fine > 0.0f ? fine : 0.0f;
    return (index + round_up_by(floor < 65536.0f ? floor : 65536.0f, draw) - kZero) & 15;
  }
};

// What a draw stands for where numbers are compared with it: a place in its share of [-1/2, 1/2), and in its
// neighbour's, since the last bit is not used. They are in the middle of what the two have.
AGOQ_HD constexpr float centred(uint32_t draw) {
  return static_cast<float>(static_cast<int32_t>(draw | 1u)) * 0x1p-16f - 0.5f;
}
// Negative if a >= 0 is more than a part t + 1/2 of the way from the cube of s - 1/2 to that of s + 1/2, which is at
// (s² + 3/4)(s + 3t) - 2t. For an integer s - 1/2 below 255 and |t| < 1/2 in 65536ths only a + 2t is rounded.
AGOQ_HD inline float before_part_of_cubes(float a, float s, float t) {
  return multiply_add(multiply_add(s, s, 0.75f), multiply_add(t, 3.0f, s), -multiply_add(t, 2.0f, a));
}

// Cubes of integers, for Adam's moments: the step near a value x is proportional to x^(2/3), so that steps are fine at
// the top and the range is wide (2^21 signed, 2^24 unsigned). 255^3 < 2^24: all values are exact in fp32. Nearest
// rounding takes a tie towards zero. With a sign: sign and magnitude.
template <Codec kName, bool kHasSign, uint32_t kLargestCode, uint32_t kStepOfScale>
struct Cubic {
  static constexpr Codec kCodec = kName;
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true;
  static constexpr uint32_t kScaleStep = kStepOfScale;
  static constexpr bool kSigned = kHasSign;
  static constexpr uint32_t kMaxCode = kLargestCode;  // of the magnitude
  static constexpr Levels kLevels = Levels::Cube;

  AGOQ_HD static constexpr float decode(uint32_t code) {
    const float cube = cube_of(kHasSign ? code & 127 : code);
    return kHasSign && code > 127 ? -cube : cube;
  }
  AGOQ_HD static constexpr uint32_t encode(float y) {
    const CubeRoot place = place_of(y);
    return finish(y, place.root + (place.above + place.above > place.gap));
  }
  AGOQ_HD static uint32_t encode(float y, uint32_t draw) {
    const CubeRoot place = place_of(y);
    const float s = static_cast<float>(static_cast<int32_t>(place.root)) + 0.5f;
    return finish(y, place.root + (before_part_of_cubes(place.size, s, centred(draw)) < 0.0f));
  }

  AGOQ_HD static constexpr float max() { return cube_of(kMaxCode); }
  AGOQ_HD static constexpr float least() { return 1.0f; }

 private:
  struct CubeRoot {
    float size;     // |y|, at most the largest
    uint32_t root;  // the largest integer whose cube is at most that
    float above;    // size - root^3, exact
    float gap;      // (root + 1)^3 - root^3, exact
  };
  AGOQ_HD static constexpr float cube_of(uint32_t root) {
    const auto r = static_cast<float>(static_cast<int32_t>(root));
    return r * r * r;
  }
  AGOQ_HD static constexpr CubeRoot place_of(float y) {
    const uint32_t bits = std::bit_cast<uint32_t>(y) & kAbsMask;
    constexpr uint32_t kMost = std::bit_cast<uint32_t>(max());
    const uint32_t z_bits = bits < kMost ? bits : kMost;
    const float z = std::bit_cast<float>(z_bits);
    // A third of the exponent, then one step of Newton: within 0.2%, less than 1/2; the comparisons make it exact.
    const float guess = std::bit_cast<float>(z_bits / 3 + 0x2a514067u);
    const float better = (guess + guess + z / (guess * guess)) * (1.0f / 3.0f);
    uint32_t root = static_cast<uint32_t>(static_cast<int32_t>(better));
    root -= cube_of(root) > z;
    root += cube_of(root + 1) <= z;
    const float cube = cube_of(root);
    return {z, root, z - cube, cube_of(root + 1) - cube};
  }
  AGOQ_HD static constexpr uint32_t finish(float y, uint32_t code) {
    return kHasSign ? code | std::bit_cast<uint32_t>(y) >> 31 << 7 : code;
  }
};

// Numbers as they are. Nearest rounding to bf16 may overflow to infinity, as everywhere; stochastic never does.
template <Codec kName, class Number>
struct Plain {
  using Stored = Number;
  static constexpr Codec kCodec = kName;
  static constexpr int kBits = 8 * sizeof(Number);
  static constexpr bool kScaled = false;
  static constexpr bool kSigned = true;

  AGOQ_HD static constexpr float decode(Number stored) { return to_float(stored); }
  AGOQ_HD static Number encode(float x) { return from_float<Number>(x); }
  AGOQ_HD static Number encode(float x, uint32_t draw) {
    if constexpr (sizeof(Number) == 4) {
      return x;
    } else {
      const uint32_t bits = std::bit_cast<uint32_t>(x);
      const uint32_t rounded = bits + draw;
      const bool overflow = (rounded & kAbsMask) >= kInfBits;
      const bool special = (bits & kAbsMask) >= kInfBits;
      return special ? to_bf16(x) : Bf16{static_cast<uint16_t>((overflow ? bits : rounded) >> 16)};
    }
  }
};

// A format that tensors are stored in.
template <Codec kName, class Format>
struct Named : Format {
  static constexpr Codec kCodec = kName;
};

using Fp32 = Plain<Codec::Fp32, float>;
using Bfloat16 = Plain<Codec::Bf16, Bf16>;
using Fp8 = Named<Codec::Fp8, Minifloat<8, 3, -6, 0x7e>>;  // e4m3 without its NaN: up to 448
using Fp6 = Named<Codec::Fp6, Minifloat<6, 3, 0, 31>>;     // e2m3: up to 7.5
using Fp5 = Named<Codec::Fp5, Minifloat<5, 2, 0, 15>>;     // e2m2: up to 7
using Fp4 = Named<Codec::Fp4, Minifloat<4, 1, 0, 7>>;      // e2m1: up to 6
using Nf4 = NormalFloat4;
using Int4 = Integer<Codec::Int4, 4>;
using Int8 = Integer<Codec::Int8, 8>;
// 124^3 has 15 significant bits, so that its product with a scale is exact and encoding again finds the same scale.
using Dyn8 = Cubic<Codec::Dyn8, true, 124, kBf16Step>;
// The square root of v moves by far less than a step at a time. A scale that follows the block's maximum in bf16 steps
// would round the whole block anew each time; powers of two rarely change.
using Dyn8Unsigned = Cubic<Codec::Dyn8Unsigned, false, 255, kPowerOfTwoStep>;

// 8-bit floats that products take (ops/linear/operand.h). A scale that is a power of two changes no mantissa: x and its
// transpose, whose blocks have other scales, hold the same numbers but for those that are subnormal in one of them.
using OperandE4M3 = Minifloat<8, 3, -6, 0x7e, kPowerOfTwoStep>;   // up to 448
using OperandE5M2 = Minifloat<8, 2, -14, 0x7b, kPowerOfTwoStep>;  // up to 57344

// The largest scale s with max * s finite, so that decoding never overflows.
template <class F>
AGOQ_HD constexpr uint32_t max_scale_bits() {
  return std::bit_cast<uint32_t>(std::numeric_limits<float>::max() / F::max()) / F::kScaleStep * (F::kScaleStep >> 16);
}

// The scale of a block whose largest magnitude is amax (NaN or Inf if one is inside): the smallest at or above
// amax / max, at least 2^-126 (so that its reciprocal is finite).
template <class F>
AGOQ_HD constexpr Bf16 scale_of(float amax) {
  if (amax == 0.0f) return Bf16{};
  if (!(amax <= std::numeric_limits<float>::max())) return Bf16{kNanScale};
  const uint32_t bits = std::bit_cast<uint32_t>(amax / F::max());
  const uint32_t up = (bits + (F::kScaleStep - 1)) / F::kScaleStep * (F::kScaleStep >> 16);
  const uint32_t least = up > 0x0080u ? up : 0x0080u;
  const uint32_t most = max_scale_bits<F>();
  return Bf16{static_cast<uint16_t>(least < most ? least : most)};
}

// A block with this scale has codes that mean something.
AGOQ_HD constexpr bool carries_codes(Bf16 scale) {
  return scale.bits != 0 && scale.bits != kNanScale;
}

// So has a block of numbers whose largest magnitude is amax: not zero, and finite.
AGOQ_HD constexpr bool has_codes(float amax) {
  return std::bit_cast<uint32_t>(amax) - 1u < kInfBits - 1u;
}

AGOQ_HD inline float reciprocal(Bf16 scale) {
  return 1.0f / to_float(scale);
}

// The number in the format's range. The unsigned format drops the sign and lifts what is not zero to its least value.
template <class F>
AGOQ_HD constexpr float scaled(float x, float inv) {
  const float y = x * inv;
  if constexpr (F::kSigned) return y;
  const float magnitude = y < 0.0f ? -y : y;
  const float least = x != 0.0f ? F::least() : 0.0f;
  return magnitude > least ? magnitude : least;
}

// Packing of a group of 8 codes, held as the 8 bytes of a word, code j in byte j. Planes, one after another in a block
// of n elements: low nibbles, ceil(n/2) bytes, code 2i in the low half of byte i; then for fp5 bit 4 of every code,
// ceil(n/8) bytes, or for fp6 bits 4 and 5, ceil(n/4) bytes.
AGOQ_HD constexpr uint32_t pack_nibbles(uint64_t codes) {
  uint64_t w = codes & 0x0f0f0f0f0f0f0f0full;
  w = (w | w >> 4) & 0x00ff00ff00ff00ffull;
  w = (w | w >> 8) & 0x0000ffff0000ffffull;
  return static_cast<uint32_t>(w | w >> 16);
}
AGOQ_HD constexpr uint64_t unpack_nibbles(uint32_t packed) {
  uint64_t w = packed;
  w = (w | w << 16) & 0x0000ffff0000ffffull;
  w = (w | w << 8) & 0x00ff00ff00ff00ffull;
  return (w | w << 4) & 0x0f0f0f0f0f0f0f0full;
}
// Bits 4 and 5 of 8 codes <-> 16 bits, code j at bit 2j.
AGOQ_HD constexpr uint16_t pack_tops2(uint64_t codes) {
  uint64_t w = codes >> 4 & 0x0303030303030303ull;
  w = (w | w >> 6) & 0x000f000f000f000full;
  w = (w | w >> 12) & 0x000000ff000000ffull;
  return static_cast<uint16_t>(w | w >> 24);
}
AGOQ_HD constexpr uint64_t unpack_tops2(uint16_t packed) {
  uint64_t w = packed;
  w = (w | w << 24) & 0x000000ff000000ffull;
  w = (w | w << 12) & 0x000f000f000f000full;
  return ((w | w << 6) & 0x0303030303030303ull) << 4;
}
// Bit 4 of 8 codes <-> 8 bits, code j at bit j.
AGOQ_HD constexpr uint8_t pack_tops1(uint64_t codes) {
  uint64_t w = codes >> 4 & 0x0101010101010101ull;
  w = (w | w >> 7) & 0x0003000300030003ull;
  w = (w | w >> 14) & 0x0000000f0000000full;
  return static_cast<uint8_t>(w | w >> 28);
}
AGOQ_HD constexpr uint64_t unpack_tops1(uint8_t packed) {
  uint64_t w = packed;
  w = (w | w << 28) & 0x0000000f0000000full;
  w = (w | w << 14) & 0x0003000300030003ull;
  return ((w | w << 7) & 0x0101010101010101ull) << 4;
}

}  // namespace agoq::codec
