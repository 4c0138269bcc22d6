// The quick arithmetic of codec/group.h is that of codec/formats.h, bit for bit, and withstands what a GPU's estimates
// may be off by.
#include "codec/group.h"

#include <array>
#include <random>

#include "codec/codec_fixture.h"
#include "codec/dispatch.h"

namespace agoq::codec {
namespace {

class Group : public testing::TestWithParam<Codec> {};
INSTANTIATE_TEST_SUITE_P(Codecs, Group, testing::ValuesIn(kScaledCodecs), CodecName{});

// All significands of one octave, and every exponent with a few: the smallest, the largest and random ones.
TEST_P(Group, ScaleIsThatOfTheFormat) {
  dispatch(GetParam(), [&]<class F>() {
    if constexpr (F::kScaled) {
      const auto check = [](uint32_t bits) {
        const auto amax = std::bit_cast<float>(bits);
        return group_scale<F>(amax).bits == scale_of<F>(amax).bits;
      };
      for (uint32_t significand = 0; significand < 1u << 23; ++significand)
        ASSERT_TRUE(check(0x3f800000u + significand)) << significand;
      std::mt19937 engine(1);
      for (uint32_t exponent = 0; exponent < 256; ++exponent)
        for (int i = 0; i < 2000; ++i) {
          const uint32_t edge = static_cast<uint32_t>(i < 64 ? i : i < 128 ? 0x7fffff - (i - 64) : engine() & 0x7fffff);
          ASSERT_TRUE(check(exponent << 23 | edge)) << exponent << " " << edge;
        }
    }
  });
}

TEST_P(Group, ReciprocalOfEveryScaleIsExactForAnyEstimate) {
  dispatch(GetParam(), [&]<class F>() {
    if constexpr (F::kScaled) {
      for (uint32_t bits = 0x0080; bits <= max_scale_bits<F>(); bits += F::kScaleStep >> 16) {
        const Bf16 scale{static_cast<uint16_t>(bits)};
        const float want = reciprocal(scale);
        ASSERT_EQ(group_reciprocal<F>(scale), want) << bits;
        if (bits > 0x7e80) continue;  // its reciprocal is subnormal, and not estimated
        for (int off = -2; off <= 2; ++off) {
          const auto estimate = std::bit_cast<float>(std::bit_cast<int32_t>(want) + off);
          ASSERT_EQ(short_reciprocal(to_float(scale), estimate), want) << bits << ", off by " << off;
        }
      }
    }
  });
}

// The largest number over its scale: scales are rounded up, except that the largest scale ends.
template <class F>
float largest_scaled() {
  return std::numeric_limits<float>::max() * reciprocal(Bf16{static_cast<uint16_t>(max_scale_bits<F>())});
}

// What a block can hold of each format, in its scale.
template <class F>
float random_in_range(std::mt19937& engine) {
  switch (engine() % 6) {
    case 0:  // any magnitude
      return std::bit_cast<float>(static_cast<uint32_t>(engine() % (std::bit_cast<uint32_t>(F::max()) + 1)));
    case 1: {  // between levels, where rounding decides, and next to it
      const uint32_t code = 1 + static_cast<uint32_t>(engine()) % ((1u << F::kBits) - 1);
      const float middle = (F::decode(code - 1) + F::decode(code)) / 2;
      const float near =
          std::bit_cast<float>(std::bit_cast<uint32_t>(std::fabs(middle)) + static_cast<uint32_t>(engine() % 5) - 2);
      return near <= F::max() ? near : 0.0f;
    }
    case 2:  // a level
      return std::fmin(std::fabs(F::decode(static_cast<uint32_t>(engine()) % (1u << F::kBits))), F::max());
    case 3:  // beyond the largest level, as under the largest scale
      return F::max() + (largest_scaled<F>() - F::max()) * static_cast<float>(engine()) * 0x1p-32f;
    default:
      return F::max() * static_cast<float>(engine()) * 0x1p-32f;
  }
}

Packed planes(Codec codec, const std::array<uint32_t, kGroup>& codes) {
  const int bits = code_bits(codec);
  uint64_t bytes = 0;
  for (size_t i = 0; i < kGroup; ++i) bytes |= uint64_t{codes[i]} << (8 * i);
  if (bits == 8) return {static_cast<uint32_t>(bytes), static_cast<uint32_t>(bytes >> 32)};
  const uint32_t high = bits == 6 ? pack_tops2(bytes) : bits == 5 ? pack_tops1(bytes) : 0u;
  return {pack_nibbles(bytes), high};
}

TEST_P(Group, EncodesAsTheFormatDoes) {
  dispatch(GetParam(), [&]<class F>() {
    if constexpr (F::kScaled) {
      std::mt19937 engine(2);
      for (int round = 0; round < 200000; ++round) {
        FloatVec8 x;
        std::array<uint32_t, kGroup> nearest{}, drawn{};
        const float inv = round % 3 == 0 ? 1.0f : round % 3 == 1 ? 0x1p20f : 0x1p-7f;
        Stochastic rounding{{}};
        for (uint32_t& word : rounding.words) word = static_cast<uint32_t>(engine());
        for (int i = 0; i < kGroup; ++i) {
          const float y = random_in_range<F>(engine);
          x[i] = (engine() & 1 ? y : -y) / inv;
          nearest[static_cast<size_t>(i)] = F::encode(scaled<F>(x[i], inv));
          drawn[static_cast<size_t>(i)] = F::encode(scaled<F>(x[i], inv), draw16(rounding.words, i));
        }
        const Packed a = encode_group<F>(x, inv, Nearest{}), b = encode_group<F>(x, inv, rounding);
        const Packed want_a = planes(GetParam(), nearest), want_b = planes(GetParam(), drawn);
        ASSERT_TRUE(a.low == want_a.low && a.high == want_a.high) << "nearest, round " << round;
        ASSERT_TRUE(b.low == want_b.low && b.high == want_b.high) << "stochastic, round " << round;
      }
    }
  });
}

// Integers by every scale that bounds its numbers: the largest and its neighbours, where a limit would matter, and
// others.
TEST_P(Group, BoundedNumbersNeedNoLimit) {
  dispatch(GetParam(), [&]<class F>() {
    if constexpr (F::kScaled) {
      std::mt19937 engine(6);
      for (uint32_t bits = 0; bits < 0x8000; bits += F::kScaleStep >> 16) {
        const Bf16 scale{static_cast<uint16_t>(bits)};
        const bool bounded = bits > 0 && bits < max_scale_bits<F>();
        ASSERT_EQ(bounds_numbers<F>(scale), bounded) << bits;
        if (!bounded || bits < 0x0080) continue;  // no scale is below 2^-126
        const float largest = F::max() * to_float(scale), inv = reciprocal(scale);
        FloatVec8 x;
        for (int i = 0; i < kGroup; ++i) {
          const auto near = std::bit_cast<float>(std::bit_cast<uint32_t>(largest) - static_cast<uint32_t>(i / 2));
          const float size = i < 6 ? near : largest * (static_cast<float>(engine()) * 0x1p-32f);
          ASSERT_TRUE(scale_of<F>(size).bits <= bits);
          x[i] = i % 2 ? size : -size;
        }
        for (const uint32_t draws : {0xffffffffu, 0u, 0x0000ffffu, static_cast<uint32_t>(engine())}) {
          const Bounded rounding{{{draws, ~draws, draws * 3, draws}}};
          std::array<uint32_t, kGroup> codes{};
          for (int i = 0; i < kGroup; ++i)
            codes[static_cast<size_t>(i)] = F::encode(scaled<F>(x[i], inv), draw16(rounding.words, i));
          const Packed want = planes(GetParam(), codes), got = encode_group<F>(x, inv, rounding);
          ASSERT_TRUE(got.low == want.low && got.high == want.high) << "scale " << bits << ", draws " << draws;
        }
      }
    }
  });
}

TEST_P(Group, AddsEveryCodeAsTheFormatDoes) {
  dispatch(GetParam(), [&]<class F>() {
    if constexpr (F::kScaled) {
      std::mt19937 engine(7);
      const uint32_t most = max_scale_bits<F>();
      for (uint32_t round = 0; round < 40000; ++round) {
        std::array<uint32_t, kGroup> codes{};
        for (uint32_t& code : codes) {
          code = static_cast<uint32_t>(engine()) % (1u << F::kBits);
          if (F::kLevels == Levels::Integer && code == 1u << (F::kBits - 1)) code = 0;  // -128 and -8 are no codes
        }
        uint32_t bits = 0x0080 + engine() % (most - 0x80);
        if (round % 50 == 0) bits = round % 100 ? uint32_t{kNanScale} : most - round / 100 % 8;
        if (round % 50 == 1) bits = 0x0080 + round / 50 % 8;
        if (round % 50 == 2) bits = 0, codes = {};
        const float scale = to_float(Bf16{static_cast<uint16_t>(bits)});
        FloatVec8 x, want;
        for (size_t i = 0; i < kGroup; ++i) {
          const float decoded = F::decode(codes[i]) * scale;
          const auto other = static_cast<float>(engine()) * 0x1p-32f - 0.5f;
          x[i] = i == 0 ? -0.0f : i == 1 ? -decoded : i == 2 ? decoded * other : other * scale;
          want[i] = x[i] + decoded;
        }
        add_group<F>(planes(GetParam(), codes), scale, x);
        for (size_t i = 0; i < kGroup; ++i) {
          if (std::isnan(want[i])) {
            ASSERT_TRUE(std::isnan(x[i]));
          } else {
            ASSERT_EQ(std::bit_cast<uint32_t>(x[i]), std::bit_cast<uint32_t>(want[i]))
                << "code " << codes[i] << ", scale " << bits;
          }
        }
      }
    }
  });
}

TEST(RngOffsets, PreparedOnesAreTheSame) {
  std::mt19937_64 engine(8);
  for (int round = 0; round < 1000; ++round) {
    const RandomKey key{engine(), RngStream::FirstMoment, static_cast<uint32_t>(engine()),
                        static_cast<uint32_t>(engine()), static_cast<uint32_t>(engine() & 0xffffff)};
    const uint64_t group = engine() >> 24;
    ASSERT_EQ(PreparedRng(key).of(group), rounding_draws(key, group));
  }
}

// One call serves both of a number's moments: its two draws, as a pair, are uniform on 16 x 16 squares. The pairs of
// the last four numbers are those of the first four turned round.
TEST(RngOffsets, OfBothMomentsAreIndependent) {
  constexpr int kGroups = 20000, kBins = 16;
  std::vector<double> pairs(kBins * kBins);
  const RandomKey first{.seed = 3, .stream = RngStream::FirstMoment, .step = 7, .tensor = 5};
  RandomKey second = first;
  second.stream = RngStream::SecondMoment;
  for (uint64_t group = 0; group < kGroups; ++group) {
    const Philox4 m = rounding_draws(first, group), v = rounding_draws(second, group);
    ASSERT_EQ(halves_exchanged(m), v);
    for (int i = 0; i < kGroup / 2; ++i) pairs[draw16(m, i) / 4096 * kBins + draw16(v, i) / 4096] += 1;
  }
  const double expected = kGroups * kGroup / 2 / static_cast<double>(pairs.size());
  double chi2 = 0;
  for (const double count : pairs) chi2 += (count - expected) * (count - expected) / expected;
  EXPECT_NEAR(chi2, 255, 5 * std::sqrt(2 * 255.0));
}

TEST_P(Group, DecodesEveryCodeAsTheFormatDoes) {
  dispatch(GetParam(), [&]<class F>() {
    if constexpr (F::kScaled) {
      std::mt19937 engine(3);
      for (uint32_t round = 0; round < 20000; ++round) {
        std::array<uint32_t, kGroup> codes{};
        for (uint32_t& code : codes) code = static_cast<uint32_t>(engine()) % (1u << F::kBits);
        const uint32_t most = max_scale_bits<F>();
        const Bf16 scale{static_cast<uint16_t>(round % 100 ? 0x0080 + engine() % (most - 0x80) : kNanScale)};
        FloatVec8 x;
        decode_group<F>(planes(GetParam(), codes), to_float(scale), x);
        for (size_t i = 0; i < kGroup; ++i) {
          const float want = F::decode(codes[i]) * to_float(scale);
          if (std::isnan(want)) {
            ASSERT_TRUE(std::isnan(x[i]));
          } else {
            ASSERT_EQ(std::bit_cast<uint32_t>(x[i]), std::bit_cast<uint32_t>(want)) << "code " << codes[i];
          }
        }
      }
    }
  });
}

// What both ways to round make of a number, for estimates of its root that are off either way.
void expect_codes_of_cubes(float a, uint32_t draw) {
  const uint32_t nearest = Dyn8Unsigned::encode(a), drawn = Dyn8Unsigned::encode(a, draw);
  for (const float off : {-0.01f, 0.0f, 0.01f}) {
    const float estimate = std::fmax(std::cbrt(a) + off, 0.0f);
    ASSERT_EQ(nearest_cube(a, estimate) & 255u, nearest) << a << " off by " << off;
    ASSERT_EQ(drawn_cube(a, estimate, centred(draw)) & 255u, drawn) << a << " off by " << off << ", draw " << draw;
  }
}

float neighbour(float a, int ulps) {
  return std::bit_cast<float>(static_cast<uint32_t>(std::max(std::bit_cast<int32_t>(a) + ulps, 0)));
}

// Every root: the numbers around its cube and around the middle between it and the next with draws of all sizes, and
// all draws with the numbers around the one where they begin to round up.
TEST(Cubes, CodesAreThoseOfTheFormatForAnyEstimate) {
  std::mt19937 engine(4);
  for (int root = 0; root < 255; ++root) {
    const auto cube = static_cast<float>(root * root * root),
               next = static_cast<float>((root + 1) * (root + 1) * (root + 1));
    for (const float edge : {cube, (cube + next) / 2, next})
      for (int ulps = -10; ulps <= 10; ++ulps)
        for (const uint32_t draw :
             {0u, 1u, 255u, 32767u, 32768u, 65279u, 65534u, 65535u, static_cast<uint32_t>(engine()) & 65535u})
          expect_codes_of_cubes(std::fmin(neighbour(edge, ulps), Dyn8Unsigned::max()), draw);
    for (uint32_t draw = 0; draw < 65536; draw += draw < 64 || draw > 65400 ? 1 : 7)
      for (int ulps = -1; ulps <= 1; ++ulps)
        expect_codes_of_cubes(neighbour(cube + (next - cube) * (centred(draw) + 0.5f), ulps), draw);
    if (HasFatalFailure()) return;
  }
}

TEST(Cubes, DrawsFromAWordAreCentred) {
  std::mt19937 engine(5);
  for (int round = 0; round < 10000; ++round) {
    Stochastic rounding{{}};
    for (uint32_t& word : rounding.words) word = static_cast<uint32_t>(engine());
    for (int i = 0; i < kGroup; ++i) ASSERT_EQ(rounding.centre(i), centred(rounding.draw(i)));
  }
}

}  // namespace
}  // namespace agoq::codec
