// The formats of docs/formats.md once more, as slowly and plainly as possible: every code's value in a list, distances
// in double precision, bits set one at a time. Shares no arithmetic with src/codec.
#pragma once

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

#include "codec/quantized.h"

namespace agoq::codec::reference {

struct Level {
  double value;
  uint32_t code;
};

enum class Tie { EvenCode, Lower };

struct Format {
  int bits = 0;
  bool sign_bit = false;    // codes are sign and magnitude; levels hold magnitudes
  bool negate = false;      // codes are two's complement; levels hold magnitudes
  bool never_zero = false;  // no sign, and what is not zero stays so
  int scale_bits = 8;       // significant bits of a scale
  Tie tie = Tie::EvenCode;
  std::vector<Level> levels;  // rising
  double max() const { return levels.back().value; }
};

inline std::vector<Level> minifloat_levels(int exponent_bits, int mantissa_bits, int bias, double largest) {
  std::vector<Level> levels;
  for (int exponent = 0; exponent < 1 << exponent_bits; ++exponent)
    for (int mantissa = 0; mantissa < 1 << mantissa_bits; ++mantissa) {
      const double fraction = std::ldexp(mantissa, -mantissa_bits);
      const double value = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
      if (value <= largest) levels.push_back({value, static_cast<uint32_t>(exponent << mantissa_bits | mantissa)});
    }
  return levels;
}

inline Format format_of(Codec codec) {
  Format f;
  const auto integers = [&](uint32_t largest, int power) {
    for (uint32_t i = 0; i <= largest; ++i) f.levels.push_back({std::pow(i, power), i});
  };
  switch (codec) {
    case Codec::Fp8:
      f = {8, true, false, false, 8, Tie::EvenCode, minifloat_levels(4, 3, 7, 448)};
      break;
    case Codec::Fp6:
      f = {6, true, false, false, 8, Tie::EvenCode, minifloat_levels(2, 3, 1, 7.5)};
      break;
    case Codec::Fp5:
      f = {5, true, false, false, 8, Tie::EvenCode, minifloat_levels(2, 2, 1, 7)};
      break;
    case Codec::Fp4:
      f = {4, true, false, false, 8, Tie::EvenCode, minifloat_levels(2, 1, 1, 6)};
      break;
    case Codec::Int4:
      f = {4, false, true, false, 8, Tie::EvenCode, {}};
      integers(7, 1);
      break;
    case Codec::Int8:
      f = {8, false, true, false, 8, Tie::EvenCode, {}};
      integers(127, 1);
      break;
    case Codec::Dyn8:
      f = {8, true, false, false, 8, Tie::Lower, {}};
      integers(124, 3);
      break;
    case Codec::Dyn8Unsigned:
      f = {8, false, false, true, 1, Tie::Lower, {}};
      integers(255, 3);
      break;
    case Codec::Nf4: {
      f = {4, false, false, false, 8, Tie::Lower, {}};
      const double values[16] = {-1.0,
                                 -0.6961928009986877,
                                 -0.5250730514526367,
                                 -0.39491748809814453,
                                 -0.28444138169288635,
                                 -0.18477343022823334,
                                 -0.09105003625154495,
                                 0.0,
                                 0.07958029955625534,
                                 0.16093020141124725,
                                 0.24611230194568634,
                                 0.33791524171829224,
                                 0.44070982933044434,
                                 0.5626170039176941,
                                 0.7229568362236023,
                                 1.0};
      for (int i = 0; i < 16; ++i) f.levels.push_back({values[i], static_cast<uint32_t>(i - 7) & 15u});
      break;
    }
    default:
      break;
  }
  return f;
}

inline uint16_t nan_scale() {
  return 0x7fc0;
}

inline double scale_value(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// The neighbours of x > 0 among numbers of `bits` significant bits.
inline double round_up(double x, int bits) {
  int exponent = 0;
  const double fraction = std::frexp(x, &exponent);  // [0.5, 1)
  return std::ldexp(std::ceil(std::ldexp(fraction, bits)), exponent - bits);
}
inline double round_down(double x, int bits) {
  int exponent = 0;
  const double fraction = std::frexp(x, &exponent);
  return std::ldexp(std::floor(std::ldexp(fraction, bits)), exponent - bits);
}

inline uint16_t scale_bits(const Format& f, const float* x, int64_t n) {
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) return nan_scale();
    largest = std::max(largest, std::fabs(static_cast<double>(x[i])));
  }
  if (largest == 0) return 0;
  double scale = round_up(static_cast<float>(largest / f.max()), f.scale_bits);
  scale = std::max(scale, std::ldexp(1.0, -126));
  scale = std::min(scale, round_down(FLT_MAX / f.max(), f.scale_bits));
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(scale)) >> 16);
}

// Index of the highest level at or below y (0 if none).
inline size_t floor_level(const Format& f, double y) {
  size_t i = 0;
  while (i + 1 < f.levels.size() && f.levels[i + 1].value <= y) ++i;
  return i;
}

inline size_t nearest_level(const Format& f, double y) {
  const size_t low = floor_level(f, y);
  if (low + 1 == f.levels.size()) return low;
  const double a = f.levels[low].value, b = f.levels[low + 1].value;
  const double middle = static_cast<float>((a + b) / 2);  // exact but for nf4, whose thresholds are fp32
  const double threshold = f.max() == 1.0 ? middle : (a + b) / 2;
  if (y != threshold) return y > threshold ? low + 1 : low;
  if (f.tie == Tie::Lower) return low;
  return f.levels[low].code % 2 == 0 ? low : low + 1;
}

inline size_t stochastic_level(const Format& f, double y, uint32_t draw) {
  const size_t low = floor_level(f, y);
  if (low + 1 == f.levels.size()) return low;
  const double a = f.levels[low].value, gap = f.levels[low + 1].value - a;
  if (f.tie == Tie::Lower && f.max() != 1.0) {  // cubes: beyond the draw's part of the gap
    const double part = (draw | 1) / 65536.0, offset = 2 * part - 1;
    const double rounded = static_cast<float>(y + offset) - offset;  // to what fp32 holds of the number so moved
    return rounded > a + gap * part ? low + 1 : low;
  }
  double fine = (y - a) / gap * 65536;
  if (f.max() == 1.0) {  // nf4 multiplies with an fp32 constant
    const auto above = static_cast<float>(y - a);
    const auto steps = static_cast<float>(65536 / static_cast<double>(static_cast<float>(gap)));
    fine = std::clamp(static_cast<double>(static_cast<float>(static_cast<double>(above) * steps)), 0.0, 65536.0);
  }
  return std::nearbyint(fine) + draw >= 65536 ? low + 1 : low;
}

// The code of x in a block with this (meaningful) scale.
inline uint32_t encode(const Format& f, float x, uint16_t scale, const uint32_t* draw) {
  const auto inv = static_cast<float>(1.0 / scale_value(scale));
  double y = static_cast<float>(static_cast<double>(x) * inv);
  const bool magnitudes = f.sign_bit || f.negate || f.never_zero;
  if (magnitudes) y = std::fabs(y);
  if (f.never_zero && x != 0) y = std::max(y, f.levels[1].value);
  const uint32_t code = f.levels[draw ? stochastic_level(f, y, *draw) : nearest_level(f, y)].code;
  const bool negative = std::signbit(x);
  if (f.sign_bit && negative) return code | 1u << (f.bits - 1);
  if (f.negate && negative) return (0u - code) & ((1u << f.bits) - 1);
  return code;
}

inline double decode(const Format& f, uint32_t code) {
  const uint32_t sign = 1u << (f.bits - 1);
  for (const Level& level : f.levels) {
    if (level.code == code) return level.value;
    if (f.sign_bit && (level.code | sign) == code) return -level.value;
    if (f.negate && ((0u - level.code) & (2 * sign - 1)) == code) return -level.value;
  }
  return std::nan("");
}

// Sets code i of a block of n that starts at `block`.
inline void set_code(uint8_t* block, const Format& f, int64_t n, int64_t i, uint32_t code) {
  for (int bit = 0; bit < f.bits; ++bit) {
    int64_t at = 8 * i + bit;                                                         // bit address in the block
    if (f.bits < 8 && bit < 4) at = 4 * i + bit;                                      // plane of nibbles
    if (f.bits < 8 && bit >= 4) at = (n + 1) / 2 * 8 + (f.bits - 4) * i + (bit - 4);  // plane above it
    if (code >> bit & 1) block[at / 8] = static_cast<uint8_t>(block[at / 8] | 1 << (at % 8));
  }
}

inline int64_t block_bytes(const Format& f, int64_t n) {
  if (f.bits == 8) return n;
  return (n + 1) / 2 + ((f.bits - 4) * n + 7) / 8;
}

struct RowLayout {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
};

inline RowLayout encode_row(Codec codec, int64_t cols, int64_t segment, const float* x, const Rounding& rounding,
                            int64_t row) {
  const Format f = format_of(codec);
  const int64_t blocks_per_row = cols / segment * ((segment + 127) / 128);
  RowLayout out;
  for (int64_t s = 0; s < cols / segment; ++s)
    for (int64_t begin = 0; begin < segment; begin += 128) {
      const int64_t n = std::min<int64_t>(128, segment - begin);
      const float* block = x + s * segment + begin;
      const uint16_t scale = scale_bits(f, block, n);
      const auto unsharded_row = rounding.global_offset.row(row);
      const int64_t wide =
          rounding.global_offset.blocks_per_row ? rounding.global_offset.blocks_per_row : blocks_per_row;
      const auto place =
          unsharded_row * wide + rounding.global_offset.first_block + static_cast<int64_t>(out.scales.size());
      std::vector<uint8_t> bytes(static_cast<size_t>(block_bytes(f, n)), 0);
      for (int64_t i = 0; i < n && scale != 0 && scale != nan_scale(); ++i) {
        RandomKey key = rounding.key;
        key.micro_batch -= key.micro_batch % 2;
        int64_t j = i % 8;  // of the group's draws
        if (key.stream == RngStream::SecondMoment) key.stream = RngStream::FirstMoment, j = (j + 4) % 8;
        const Philox4 words = key.draw(static_cast<uint64_t>(16 * place + i / 8));
        const uint32_t drawn = words[static_cast<size_t>(j / 2)] >> (j % 2 ? 16 : 0) & 0xffff;
        const uint32_t draw = rounding.key.micro_batch % 2 ? 65535 - drawn : drawn;
        set_code(bytes.data(), f, n, i, encode(f, block[i], scale, rounding.stochastic ? &draw : nullptr));
      }
      out.codes.insert(out.codes.end(), bytes.begin(), bytes.end());
      out.scales.push_back(scale);
    }
  return out;
}

}  // namespace agoq::codec::reference
