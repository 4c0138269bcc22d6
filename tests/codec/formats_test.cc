// Bit for bit against the reference, and code tables against their definitions.
#include "codec/formats.h"

#include <array>

#include "codec/codec_fixture.h"
#include "codec/dispatch.h"
#include "codec/reference.h"

namespace agoq::codec {
namespace {

class ScaledFormat : public testing::TestWithParam<Codec> {};
INSTANTIATE_TEST_SUITE_P(Codecs, ScaledFormat, testing::ValuesIn(kScaledCodecs), CodecName{});

using Family = std::vector<float> (*)(size_t n, Codec codec);

template <class Make>
std::vector<float> generated(size_t n, uint32_t seed, Make&& make) {
  std::mt19937 engine(seed);
  std::vector<float> x(n);
  for (float& v : x) v = make(engine);
  return x;
}

float random_finite(std::mt19937& engine) {
  const auto x = std::bit_cast<float>(static_cast<uint32_t>(engine()));
  return std::isfinite(x) ? x : 0.0f;
}

std::vector<float> wide(size_t n, Codec) {  // magnitudes over 80 octaves
  std::normal_distribution<float> normal;
  return generated(n, 3, [&](std::mt19937& e) { return std::ldexp(normal(e), static_cast<int>(e() % 80) - 40); });
}
std::vector<float> any_bits(size_t n, Codec) {
  return generated(n, 4, random_finite);
}
std::vector<float> denormal(size_t n, Codec) {
  return generated(
      n, 5, [](std::mt19937& e) { return random_finite(e) < 0 ? -0x1p-149f * (e() % 5000) : 0x1p-140f * (e() % 9); });
}
std::vector<float> tiny(size_t n, Codec) {
  std::normal_distribution<float> normal;
  return generated(n, 6, [&](std::mt19937& e) { return normal(e) * 0x1p-124f; });
}
std::vector<float> huge(size_t n, Codec) {
  return generated(n, 7, [](std::mt19937& e) {
    const float x = e() % 4 ? 3.4e38f * static_cast<float>(e()) * 0x1p-32f : FLT_MAX;
    return e() & 1 ? -x : x;
  });
}
std::vector<float> sparse(size_t n, Codec) {
  return generated(n, 8, [](std::mt19937& e) { return e() % 50 == 0 ? random_finite(e) : e() & 1 ? -0.0f : 0.0f; });
}
// Levels, midpoints between levels and their fp32 neighbours, under a power-of-two scale: every tie, exactly.
std::vector<float> ties(size_t n, Codec codec) {
  const reference::Format f = reference::format_of(codec);
  std::mt19937 engine(9);
  std::vector<float> x(n);
  for (float& v : x) {
    const size_t i = engine() % (f.levels.size() - 1);
    const double middle = (f.levels[i].value + f.levels[i + 1].value) / 2;
    v = static_cast<float>(engine() % 3 ? middle : f.levels[i].value);
    if (engine() % 3 == 0) v = std::nextafter(v, engine() & 1 ? 2e9f : -2e9f);
    if (engine() & 1) v = -v;
  }
  for (size_t i = 0; i < n; i += 8) x[i] = static_cast<float>(f.max());
  return x;
}
std::vector<float> normal_numbers(size_t n, Codec) {
  return gaussian(n, 1);
}
std::vector<float> laplace_numbers(size_t n, Codec) {
  return laplace(n, 2);
}
std::vector<float> small_integers(size_t n, Codec) {
  return generated(n, 10, [](std::mt19937& e) { return static_cast<float>(static_cast<int>(e() % 255) - 127); });
}

constexpr std::array<std::pair<const char*, Family>, 10> kFamilies = {{{"normal", normal_numbers},
                                                                       {"laplace", laplace_numbers},
                                                                       {"wide", wide},
                                                                       {"any bits", any_bits},
                                                                       {"denormal", denormal},
                                                                       {"tiny", tiny},
                                                                       {"huge", huge},
                                                                       {"sparse", sparse},
                                                                       {"ties", ties},
                                                                       {"integers", small_integers}}};

void expect_equal_to_reference(Codec codec, RowBlocks row, const std::vector<float>& x, const Rounding& rounding) {
  const int64_t rows = static_cast<int64_t>(x.size()) / row.cols;
  OwnedQuantized q(codec, rows, row);
  q.encode(x, rounding);
  const std::vector<float> decoded = q.decode();
  const reference::Format f = reference::format_of(codec);
  size_t code_at = 0, scale_at = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const reference::RowLayout want =
        reference::encode_row(codec, row.cols, row.segment, x.data() + r * row.cols, rounding, r);
    for (uint16_t scale : want.scales) ASSERT_EQ(q.scales()[scale_at++], scale) << "scale " << scale_at - 1;
    for (uint8_t byte : want.codes) {
      ASSERT_EQ(q.codes()[code_at], byte) << "byte " << code_at << " of a row of " << want.codes.size();
      ++code_at;
    }
  }
  ASSERT_EQ(code_at, q.codes().size());
  ASSERT_EQ(scale_at, q.scales().size());
}

TEST_P(ScaledFormat, EqualsReferenceBitForBit) {
  const RowBlocks shapes[] = {RowBlocks(1024),        RowBlocks(1),          RowBlocks(7),
                              RowBlocks(129),         RowBlocks(8 * 72, 72), RowBlocks(2 * 333, 333),
                              RowBlocks(4 * 256, 256)};
  for (const auto& [name, family] : kFamilies)
    for (const RowBlocks& shape : shapes) {
      SCOPED_TRACE(testing::Message() << name << ", " << shape.cols << " columns, segments of " << shape.segment);
      const std::vector<float> x = family(static_cast<size_t>(2 * shape.cols), GetParam());
      expect_equal_to_reference(GetParam(), shape, x, Rounding::nearest());
      RandomKey key{.seed = 0x123456789abull, .step = 3, .micro_batch = 4, .tensor = 9};
      expect_equal_to_reference(GetParam(), shape, x, Rounding::random(key));
      key.micro_batch = 5;
      expect_equal_to_reference(GetParam(), shape, x,
                                Rounding::random(key, {.first_row = 7, .first_block = 3, .blocks_per_row = 1000}));
      if (HasFatalFailure()) return;
    }
}

TEST_P(ScaledFormat, DecodesEveryCodeToItsDefinition) {
  const reference::Format f = reference::format_of(GetParam());
  dispatch(GetParam(), [&]<class F>() {
    if constexpr (F::kScaled) {
      EXPECT_EQ(F::decode(0), 0.0f);
      EXPECT_EQ(F::max(), f.max());
      EXPECT_EQ(F::kBits, f.bits);
      for (uint32_t code = 0; code < 1u << F::kBits; ++code) {
        const double want = reference::decode(f, code);
        if (std::isnan(want)) continue;  // no level encodes to it
        EXPECT_EQ(F::decode(code), static_cast<float>(want)) << "code " << code;
      }
    }
  });
}

TEST_P(ScaledFormat, EncodesEveryLevelToItsCode) {
  const reference::Format f = reference::format_of(GetParam());
  dispatch(GetParam(), [&]<class F>() {
    if constexpr (F::kScaled) {
      for (const reference::Level& level : f.levels) {
        EXPECT_EQ(F::encode(static_cast<float>(level.value)), level.code);
        for (uint32_t draw : {0u, 1u, 32768u, 65535u})
          EXPECT_EQ(F::encode(static_cast<float>(level.value), draw), level.code) << "draw " << draw;
      }
    }
  });
}

// Every 997th fp32 number from 0 to the largest level: codes never fall.
TEST_P(ScaledFormat, IsMonotone) {
  dispatch(GetParam(), [&]<class F>() {
    if constexpr (F::kScaled) {
      float before = 0.0f;
      for (uint32_t bits = 0; bits <= std::bit_cast<uint32_t>(F::max()); bits += 997) {
        const float value = F::decode(F::encode(std::bit_cast<float>(bits)));
        ASSERT_GE(value, before) << std::bit_cast<float>(bits);
        before = value;
      }
      EXPECT_EQ(before, F::max());
    }
  });
}

TEST(Packing, GroupsGoThereAndBack) {
  std::mt19937_64 engine(5);
  for (int i = 0; i < 10000; ++i) {
    const uint64_t codes = engine();
    const uint64_t low = codes & 0x0f0f0f0f0f0f0f0full;
    EXPECT_EQ(unpack_nibbles(pack_nibbles(codes)), low);
    EXPECT_EQ(unpack_tops1(pack_tops1(codes)), codes & 0x1010101010101010ull);
    EXPECT_EQ(unpack_tops2(pack_tops2(codes)), codes & 0x3030303030303030ull);
  }
}

// The worked examples of docs/formats.md.
TEST(Packing, WorkedExamples) {
  const std::vector<float> x = {6.0f, -0.4f, 1.2f, -2.6f, 0.1f};
  const auto bytes = [&](Codec codec, const std::vector<float>& numbers) {
    OwnedQuantized q(codec, 1, RowBlocks(static_cast<int64_t>(numbers.size())));
    q.encode(numbers);
    EXPECT_EQ(q.scales()[0], 0x3f80);  // 1: the first number is the largest level
    return q.codes();
  };
  // +6 -0.5 +1 -3 0: codes 7, 9, 2, 13, 0
  EXPECT_EQ(bytes(Codec::Fp4, x), (std::vector<uint8_t>{0x97, 0xd2, 0x00}));
  // +7 -0.5 +1.25 -2.5 0: magnitudes 15, 2, 5, 9 (1.25 * 2), signs in bit 4
  EXPECT_EQ(bytes(Codec::Fp5, {7.0f, -0.4f, 1.2f, -2.6f, 0.1f}), (std::vector<uint8_t>{0x2f, 0x95, 0x00, 0x0a}));
  // +7.5 -0.375 +1.25 -2.5 +0.125: magnitudes 31, 3, 10, 18 (1.25 * 2), 1
  EXPECT_EQ(bytes(Codec::Fp6, {7.5f, -0.4f, 1.2f, -2.6f, 0.1f}), (std::vector<uint8_t>{0x3f, 0x2a, 0x01, 0xc9, 0x00}));
  EXPECT_EQ(bytes(Codec::Int4, {7.0f, -0.4f, 1.2f, -2.6f, 0.1f}), (std::vector<uint8_t>{0x07, 0xd1, 0x00}));
  EXPECT_EQ(bytes(Codec::Nf4, {1.0f, -0.4f, 0.2f, -0.9f, 0.01f}), (std::vector<uint8_t>{0xc8, 0x92, 0x00}));
  EXPECT_EQ(bytes(Codec::Int8, {127.0f, -0.4f, 1.2f, -2.6f, 0.1f}), (std::vector<uint8_t>{127, 0, 1, 253, 0}));
  EXPECT_EQ(bytes(Codec::Fp8, {448.0f, -0.4f, 1.2f, -2.6f, 0.1f}),
            (std::vector<uint8_t>{0x7e, 0xad, 0x3a, 0xc2, 0x1d}));
}

TEST_P(ScaledFormat, AllCodesSurviveStorage) {
  const reference::Format f = reference::format_of(GetParam());
  // Scale 1 and the largest level in front: the codes are then those of the levels themselves.
  std::vector<float> x;
  for (const reference::Level& level : f.levels)
    for (float sign : {1.0f, -1.0f}) {
      if (sign < 0 && !f.sign_bit && !f.negate) continue;
      if (x.size() % kBlock == 0) x.push_back(static_cast<float>(f.max()));
      x.push_back(sign * static_cast<float>(level.value));
    }
  EXPECT_EQ(round_trip(GetParam(), x), x);
}

}  // namespace
}  // namespace agoq::codec
