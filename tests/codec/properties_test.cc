// What a user of a codec relies on, whatever its codes: error bounds, special values, short blocks, storage.
#include <cfloat>
#include <cstdio>
#include <limits>

#include "codec/codec_fixture.h"
#include "codec/reference.h"

namespace agoq::codec {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class ScaledCodec : public testing::TestWithParam<Codec> {};
INSTANTIATE_TEST_SUITE_P(Codecs, ScaledCodec, testing::ValuesIn(kScaledCodecs), CodecName{});
class AnyCodec : public testing::TestWithParam<Codec> {};
INSTANTIATE_TEST_SUITE_P(Codecs, AnyCodec, testing::ValuesIn(kAllCodecs), CodecName{});

// Half a step at |x| in a block of scale s, from the definition of the format.
double half_step(Codec codec, double x, double s) {
  const auto minifloat = [&](int mantissa, int lowest_exponent) {
    return std::max(std::ldexp(x, -mantissa - 1), s * std::ldexp(1.0, lowest_exponent - mantissa - 1));
  };
  const auto cubic = [&] {
    const double root = std::ceil(std::cbrt(x / s) + 1e-6);
    return s * (3 * root * root + 3 * root + 1) / 2;
  };
  switch (codec) {
    case Codec::Fp8:
      return minifloat(3, -6);
    case Codec::Fp6:
      return minifloat(3, 0);
    case Codec::Fp5:
      return minifloat(2, 0);
    case Codec::Fp4:
      return minifloat(1, 0);
    case Codec::Int4:
    case Codec::Int8:
      return s / 2;
    case Codec::Nf4:
      return s * (1 - 0.6961928) / 2;  // its widest gap
    default:
      return cubic();
  }
}

TEST_P(ScaledCodec, ErrorIsAtMostHalfAStep) {
  std::vector<float> x = gaussian(128 * 200, 1);
  std::mt19937 engine(2);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = std::ldexp(x[i], static_cast<int>(engine() % 12) + static_cast<int>(i / 128) - 100);
  x = suited(GetParam(), x);
  OwnedQuantized q(GetParam(), 1, RowBlocks(static_cast<int64_t>(x.size())));
  q.encode(x);
  const std::vector<float> back = q.decode();
  for (size_t i = 0; i < x.size(); ++i) {
    const double s = reference::scale_value(q.scales()[i / 128]);
    const double bound = half_step(GetParam(), std::fabs(x[i]), s) * (1 + 1e-5);
    ASSERT_LE(std::fabs(static_cast<double>(back[i]) - x[i]), bound) << "element " << i << " is " << x[i];
  }
}

TEST_P(ScaledCodec, StochasticErrorIsLessThanAStep) {
  const std::vector<float> x = suited(GetParam(), gaussian(128 * 200, 3));
  OwnedQuantized q(GetParam(), 1, RowBlocks(static_cast<int64_t>(x.size())));
  q.encode(x, Rounding::random({}));
  const std::vector<float> back = q.decode();
  for (size_t i = 0; i < x.size(); ++i) {
    const double s = reference::scale_value(q.scales()[i / 128]);
    ASSERT_LE(std::fabs(back[i] - x[i]), 2 * half_step(GetParam(), std::fabs(x[i]), s) * (1 + 1e-5));
  }
}

TEST_P(ScaledCodec, ScaleIsTheSmallestThatHolds) {
  const std::vector<float> x = suited(GetParam(), gaussian(128 * 500, 4));
  OwnedQuantized q(GetParam(), 1, RowBlocks(static_cast<int64_t>(x.size())));
  q.encode(x);
  const reference::Format f = reference::format_of(GetParam());
  for (size_t b = 0; b < 500; ++b) {
    float largest = 0;
    for (size_t i = 0; i < 128; ++i) largest = std::max(largest, std::fabs(x[128 * b + i]));
    const double s = reference::scale_value(q.scales()[b]);
    EXPECT_GE(s * f.max() * (1 + 0x1p-23), largest);
    EXPECT_LE(s * f.max(), largest * (1 + std::ldexp(1.0, 1 - f.scale_bits)));
  }
}

TEST_P(AnyCodec, ZerosAreExact) {
  std::vector<float> x(300, 0.0f);
  for (size_t i = 0; i < x.size(); i += 2) x[i] = -0.0f;
  for (const Rounding& rounding : {Rounding::nearest(), Rounding::random({})})
    for (float v : round_trip(GetParam(), x, rounding)) EXPECT_EQ(v, 0.0f);
}

TEST_P(AnyCodec, ZeroedMemoryIsZero) {
  Arena arena(Device::Cpu, 1 << 20);
  const Context ctx(arena, Device::Cpu, DType::F32);
  const Quantized q = allocate(arena, Owner::Operands, GetParam(), 3, RowBlocks(200));
  std::vector<float> x(600, 1.0f);
  const Tensor out = host_tensor(x.data(), {3, 200});
  decode(ctx, q, out);
  for (float v : x) EXPECT_EQ(std::bit_cast<uint32_t>(v), 0u);
  encode(ctx, host_tensor(std::vector<float>(600, 2.0f).data(), {3, 200}), q);
  zero(ctx, q);
  decode(ctx, q, out);
  for (float v : x) EXPECT_EQ(std::bit_cast<uint32_t>(v), 0u);
}

TEST_P(ScaledCodec, DamageSpoilsItsBlockAndNoOther) {
  for (float bad : {kNan, -kNan, kInf, -kInf})
    for (size_t at : {0u, 127u, 128u, 300u}) {
      std::vector<float> x = suited(GetParam(), gaussian(301, 5));
      const std::vector<float> clean = round_trip(GetParam(), x);
      x[at] = bad;
      for (const Rounding& rounding : {Rounding::nearest(), Rounding::random({})}) {
        OwnedQuantized q(GetParam(), 1, RowBlocks(301));
        q.encode(x, rounding);
        EXPECT_EQ(q.scales()[at / 128], 0x7fc0);
        const std::vector<float> back = q.decode();
        for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(std::isnan(back[i]), i / 128 == at / 128);
        if (rounding.stochastic) continue;
        for (size_t i = 0; i < x.size(); ++i) {
          if (i / 128 == at / 128) continue;
          EXPECT_EQ(back[i], clean[i]);
        }
      }
    }
}

TEST(PlainCodec, KeepsSpecialValues) {
  for (Codec codec : {Codec::Fp32, Codec::Bf16})
    for (const Rounding& rounding : {Rounding::nearest(), Rounding::random({})}) {
      const std::vector<float> back = round_trip(codec, {kNan, kInf, -kInf, 1.5f, -0.0f}, rounding);
      EXPECT_TRUE(std::isnan(back[0]));
      EXPECT_EQ(back[1], kInf);
      EXPECT_EQ(back[2], -kInf);
      EXPECT_EQ(back[3], 1.5f);
      EXPECT_TRUE(back[4] == 0.0f && std::signbit(back[4]));
    }
}

TEST_P(ScaledCodec, LargestNumbersStayFinite) {
  const bool is_unsigned = GetParam() == Codec::Dyn8Unsigned;
  const std::vector<float> x = {FLT_MAX, is_unsigned ? FLT_MAX : -FLT_MAX, FLT_MAX / 2, 1.0f, 0.0f};
  for (const Rounding& rounding : {Rounding::nearest(), Rounding::random({})}) {
    const std::vector<float> back = round_trip(GetParam(), x, rounding);
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_TRUE(std::isfinite(back[i]));
      EXPECT_GE(back[i] / x[i], 0.98) << back[i];  // the largest scale is rounded down
    }
  }
}

TEST_P(ScaledCodec, SmallestNumbersDecodeToAtMostHalfAStepOff) {
  for (float top : {0x1p-149f, 0x1p-140f, 0x1p-126f, 0x1p-120f}) {
    const std::vector<float> x = suited(GetParam(), {top, -top, top / 2, 0.0f});
    const std::vector<float> back = round_trip(GetParam(), x);
    const double s = std::max(std::ldexp(1.0, -126), 2 * top / reference::format_of(GetParam()).max());
    for (size_t i = 0; i < x.size(); ++i) {
      const double bound = GetParam() == Codec::Dyn8Unsigned ? std::max(s, half_step(GetParam(), x[i], s))
                                                             : half_step(GetParam(), std::fabs(x[i]), s);
      EXPECT_LE(std::fabs(static_cast<double>(back[i]) - x[i]), bound * (1 + 1e-5)) << x[i];
    }
  }
}

TEST(UnsignedCodec, NeverTurnsSomethingIntoNothing) {
  std::vector<float> x = {1e30f, 1e-30f, 0x1p-149f, 0.0f, 1.0f, 1e29f};
  for (const Rounding& rounding : {Rounding::nearest(), Rounding::random({})}) {
    const std::vector<float> back = round_trip(Codec::Dyn8Unsigned, x, rounding);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(back[i] > 0, x[i] > 0) << x[i] << " became " << back[i];
  }
}

TEST_P(AnyCodec, ShortBlocksAndSegmentsEqualSeparateRows) {
  const RowBlocks row(3 * 145, 145);  // blocks of 128 and 17 in every segment
  const std::vector<float> x = suited(GetParam(), gaussian(3 * 145, 6));
  OwnedQuantized whole(GetParam(), 1, row);
  whole.encode(x);
  const std::vector<float> back = whole.decode();
  for (int64_t segment = 0; segment < 3; ++segment)
    for (auto [begin, n] : {std::pair<int64_t, int64_t>{0, 128}, {128, 17}}) {
      const auto first = x.begin() + segment * 145 + begin;
      const std::vector<float> alone = round_trip(GetParam(), std::vector<float>(first, first + n));
      for (int64_t i = 0; i < n; ++i)
        EXPECT_EQ(alone[static_cast<size_t>(i)], back[static_cast<size_t>(segment * 145 + begin + i)]);
    }
}

TEST_P(AnyCodec, SingleBlocksEqualRows) {
  const RowBlocks row(2 * 300, 300);
  const std::vector<float> x = suited(GetParam(), gaussian(2 * 600, 7));
  for (const Rounding& rounding : {Rounding::nearest(), Rounding::random({.seed = 4})}) {
    OwnedQuantized rows(GetParam(), 2, row), blocks(GetParam(), 2, row);
    rows.encode(x, rounding);
    std::vector<float> back(x.size());
    for (int64_t r = 0; r < 2; ++r)
      for (int64_t b = row.blocks() - 1; b >= 0; --b) {
        encode_block(blocks, r, b, x.data() + r * row.cols + row.begin(b), rounding);
        decode_block(blocks, r, b, back.data() + r * row.cols + row.begin(b));
      }
    EXPECT_EQ(rows.codes(), blocks.codes());
    EXPECT_EQ(rows.scales(), blocks.scales());
    EXPECT_EQ(rows.decode(), back);
  }
}

TEST_P(AnyCodec, TensorsEqualRowsInFp32AndBf16) {
  Arena arena(Device::Cpu, 1 << 20);
  const Context ctx(arena, Device::Cpu, DType::F32);
  const RowBlocks row(2 * 4200, 4200);  // more blocks than one piece of work
  std::vector<Bf16> x16;
  std::vector<float> x;
  for (float v : suited(GetParam(), gaussian(3 * 8400, 8))) {
    x16.push_back(to_bf16(v));
    x.push_back(to_float(x16.back()));
  }
  const Rounding rounding = Rounding::random({.seed = 8});
  OwnedQuantized rows(GetParam(), 3, row), from_fp32(GetParam(), 3, row), from_bf16(GetParam(), 3, row);
  rows.encode(x, rounding);
  encode(ctx, host_tensor(x.data(), {3, 8400}), from_fp32, rounding);
  encode(ctx, host_tensor(x16.data(), {3, 8400}), from_bf16, rounding);
  EXPECT_EQ(rows.codes(), from_fp32.codes());
  EXPECT_EQ(rows.codes(), from_bf16.codes());
  EXPECT_EQ(rows.scales(), from_bf16.scales());

  std::vector<float> back(x.size());
  std::vector<Bf16> back16(x.size());
  decode(ctx, rows, host_tensor(back.data(), {3, 8400}));
  decode(ctx, rows, host_tensor(back16.data(), {3, 8400}));
  EXPECT_EQ(back, rows.decode());
  for (size_t i = 0; i < back.size(); ++i) ASSERT_EQ(back16[i].bits, to_bf16(back[i]).bits);
}

// From scales held up at 2^-126 to nearly the largest numbers.
TEST_P(AnyCodec, EncodingAgainChangesNothing) {
  std::vector<float> x = suited(GetParam(), gaussian(128 * 250 + 50, 9));
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::ldexp(x[i], static_cast<int>(i / 128) - 126);
  OwnedQuantized once(GetParam(), 1, RowBlocks(static_cast<int64_t>(x.size())));
  OwnedQuantized twice(GetParam(), 1, RowBlocks(static_cast<int64_t>(x.size())));
  once.encode(x);
  const std::vector<float> first = once.decode();
  // Only where the largest number of a block need not become the largest level does the scale follow it.
  const bool exact = GetParam() != Codec::Int8 && GetParam() != Codec::Dyn8Unsigned;
  for (const Rounding& rounding : {Rounding::nearest(), Rounding::random({})}) {
    twice.encode(first, rounding);
    if (exact) {
      EXPECT_EQ(once.codes(), twice.codes());
      EXPECT_EQ(once.scales(), twice.scales());
    } else if (!rounding.stochastic) {
      const std::vector<float> second = twice.decode();
      for (size_t i = 0; i < x.size(); ++i) {
        const double s = reference::scale_value(twice.scales()[i / 128]);
        ASSERT_LE(std::fabs(second[i] - first[i]), half_step(GetParam(), first[i], s) * (1 + 1e-5));
      }
    }
  }
}

struct ErrorBound {
  Codec codec;
  double gaussian;  // largest relative L2 error allowed
};

TEST(RelativeError, OnGaussianAndLaplaceBlocks) {
  const ErrorBound bounds[] = {{Codec::Fp4, 0.110},   {Codec::Nf4, 0.097},  {Codec::Int4, 0.118},
                               {Codec::Fp5, 0.054},   {Codec::Fp6, 0.027},  {Codec::Fp8, 0.026},
                               {Codec::Int8, 0.0066}, {Codec::Dyn8, 0.009}, {Codec::Bf16, 0.0017}};
  const std::vector<float> normal = gaussian(128 * 4096, 10), heavy = laplace(128 * 4096, 11);
  std::printf("relative L2 error of blocks of 128    gaussian   laplace   gaussian, stochastic\n");
  for (const auto& [codec, bound] : bounds) {
    const double error = relative_error(round_trip(codec, normal), normal);
    std::printf("  %-33s %9.5f %9.5f %9.5f\n", std::string(name_of(codec)).c_str(), error,
                relative_error(round_trip(codec, heavy), heavy),
                relative_error(round_trip(codec, normal, Rounding::random({})), normal));
    EXPECT_LE(error, bound) << name_of(codec);
    EXPECT_GE(error, 0.9 * bound) << name_of(codec) << ": better than the format can be";
  }
}

}  // namespace
}  // namespace agoq::codec
