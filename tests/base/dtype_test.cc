#include "base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace agoq {
namespace {

constexpr DType kAll[] = {DType::F32, DType::BF16, DType::F16, DType::I32,  DType::I64, DType::I16,
                          DType::U16, DType::U8,   DType::F64, DType::E4M3, DType::E5M2};

TEST(DType, NamesAndSizes) {
  for (DType dtype : kAll) EXPECT_EQ(dtype_from_name(name_of(dtype)), dtype);
  EXPECT_EQ(name_of(DType::F16), "fp16");
  EXPECT_EQ(name_of(DType::I32), "int32");
  EXPECT_EQ(size_of(DType::BF16), 2u);
  EXPECT_EQ(size_of(DType::I64), 8u);
  EXPECT_EQ(size_of(DType::U8), 1u);
  EXPECT_FALSE(dtype_from_name("float").has_value());
  EXPECT_FALSE(dtype_from_name("").has_value());
}

// The value of a small IEEE float from its definition, in double (exact).
double value_of(uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto exponent = static_cast<int>((bits >> fraction_bits) & ((1u << exponent_bits) - 1));
  const double fraction = std::ldexp(static_cast<double>(bits & ((1u << fraction_bits) - 1)), -fraction_bits);
  const double sign = (bits >> (exponent_bits + fraction_bits)) & 1 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1)
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1 + fraction, exponent - bias);
}

struct Format {
  int exponent_bits, fraction_bits;
  uint32_t infinity() const { return ((1u << exponent_bits) - 1) << fraction_bits; }
  double value(uint32_t bits) const { return value_of(bits, exponent_bits, fraction_bits); }
};
constexpr Format kHalf{5, 10}, kBf16{8, 7};

// Round to nearest even by search among all finite codes and the one past the largest (which means infinity).
uint16_t nearest_code(double x, Format format) {
  const uint32_t sign = std::signbit(x) ? 0x8000u : 0u;
  const double magnitude = std::abs(x);
  uint32_t low = 0, high = format.infinity();
  const auto value = [&](uint32_t code) {
    if (code < format.infinity()) return format.value(code);
    return 2 * format.value(code - 1) - format.value(code - 2);  // as if the range went on
  };
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (value(middle) <= magnitude ? low : high) = middle;
  }
  const double down = magnitude - value(low), up = value(high) - magnitude;
  const bool take_high = up < down || (up == down && (low & 1));
  return static_cast<uint16_t>(sign | (take_high ? high : low));
}

// Every value of the format, the middle between each two neighbours, and the floats just beside those middles.
std::vector<float> interesting(Format format) {
  std::vector<float> values;
  for (uint32_t code = 0; code < format.infinity(); ++code) {
    const double next =
        code + 1 < format.infinity() ? format.value(code + 1) : 2 * format.value(code) - format.value(code - 1);
    const auto here = static_cast<float>(format.value(code));
    const auto middle = static_cast<float>((format.value(code) + next) / 2);
    for (float x : {here, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, HUGE_VALF)}) {
      values.push_back(x);
      values.push_back(-x);
    }
  }
  return values;
}

TEST(Half, EveryCodeDecodesExactly) {
  for (uint32_t code = 0; code < 65536; ++code) {
    const double expected = kHalf.value(code);
    const float decoded = half_to_float(static_cast<uint16_t>(code));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(decoded)) << code;
    } else {
      ASSERT_EQ(static_cast<double>(decoded), expected) << code;
      ASSERT_EQ(std::signbit(decoded), (code >> 15) != 0) << code;
      ASSERT_EQ(float_to_half(decoded), code);
    }
  }
}

TEST(Half, RoundsToNearestEven) {
  for (float x : interesting(kHalf)) ASSERT_EQ(float_to_half(x), nearest_code(x, kHalf)) << x;
}

TEST(Half, Specials) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(float_to_half(infinity), 0x7c00);
  EXPECT_EQ(float_to_half(-infinity), 0xfc00);
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::max()), 0x7c00);
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_EQ(float_to_half(-0.0f), 0x8000);
  for (uint32_t bits : {0x7f800001u, 0x7fc00000u, 0xff800001u, 0xffffffffu})
    EXPECT_TRUE(std::isnan(half_to_float(float_to_half(std::bit_cast<float>(bits))))) << bits;
}

TEST(BrainFloat, EveryCodeDecodesExactly) {
  for (uint32_t code = 0; code < 65536; ++code) {
    const double expected = kBf16.value(code);
    const float decoded = to_float(Bf16{static_cast<uint16_t>(code)});
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(decoded)) << code;
      ASSERT_TRUE(std::isnan(to_float(to_bf16(decoded)))) << code;
    } else {
      ASSERT_EQ(static_cast<double>(decoded), expected) << code;
      ASSERT_EQ(to_bf16(decoded).bits, code);
    }
  }
}

TEST(BrainFloat, RoundsToNearestEven) {
  for (float x : interesting(kBf16)) {
    if (std::isinf(x)) continue;  // the float after the largest
    ASSERT_EQ(to_bf16(x).bits, nearest_code(x, kBf16)) << x;
  }
}

TEST(BrainFloat, EveryNanStaysNanWithItsSign) {
  for (uint32_t low : {1u, 0x7fffu, 0x8000u, 0xffffu})
    for (uint32_t high : {0x7f80u, 0xff80u, 0x7fffu, 0xffffu}) {
      const uint32_t bits = (high << 16) | low;
      const Bf16 rounded = to_bf16(std::bit_cast<float>(bits));
      EXPECT_TRUE(std::isnan(to_float(rounded))) << bits;
      EXPECT_EQ(rounded.bits >> 15, bits >> 31) << bits;
    }
}

TEST(Fp8, EveryCodeHasTheValueOfItsDefinition) {
  for (uint32_t code = 0; code < 256; ++code) {
    const double e5m2 = value_of(code, 5, 2), got = to_float(E5M2{static_cast<uint8_t>(code)});
    if (std::isnan(e5m2)) {
      EXPECT_TRUE(std::isnan(got)) << code;
    } else {
      EXPECT_EQ(got, e5m2) << code;
      EXPECT_EQ(std::signbit(got), std::signbit(e5m2)) << code;
    }
    const float e4m3 = to_float(E4M3{static_cast<uint8_t>(code)});
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(e4m3)) << code;
    } else if ((code & 0x78) == 0x78) {  // the exponent that IEEE 754 keeps for infinity and NaN holds numbers here
      EXPECT_EQ(e4m3, (code & 0x80 ? -1 : 1) * (1 + (code & 7) / 8.0f) * 256) << code;
    } else {
      EXPECT_EQ(e4m3, value_of(code, 4, 3)) << code;
      EXPECT_EQ(std::signbit(e4m3), (code & 0x80) != 0) << code;
    }
  }
}

}  // namespace
}  // namespace agoq
