// Stochastic rounding: unbiased, the same under every mesh, independent between data ranks.
#include <cstdio>

#include "codec/codec_fixture.h"
#include "codec/reference.h"

namespace agoq::codec {
namespace {

class StochasticCodec : public testing::TestWithParam<Codec> {};
INSTANTIATE_TEST_SUITE_P(Codecs, StochasticCodec, testing::ValuesIn(kAllCodecs), CodecName{});

// Neighbours of x among what the codec can hold, in a block of scale s.
std::pair<double, double> neighbours(Codec codec, double x, double s) {
  if (codec == Codec::Fp32) return {x, x};
  if (codec == Codec::Bf16) {
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(x)) & 0xffff0000u;
    const double a = std::bit_cast<float>(bits), b = std::bit_cast<float>(bits + 0x10000u);
    return {std::min(a, b), std::max(a, b)};
  }
  const reference::Format f = reference::format_of(codec);
  const bool negative = x < 0 && codec != Codec::Nf4;
  const size_t low = reference::floor_level(f, (negative ? -x : x) / s);
  const double a = f.levels[low].value * s, b = f.levels[low + 1].value * s;
  return negative ? std::pair{-b, -a} : std::pair{a, b};
}

// A row of 800 blocks, each with one number at the top and 127 times x: 101,600 independent draws. The mean error, in
// units of its standard deviation step * sqrt(f (1 - f) / n), is normal; |z| < 4.5 fails once in 147,000 by chance.
// The rounding itself may be biased by 2^-16 of a step, a hundredth of these units. Every case has its own
// key.
TEST_P(StochasticCodec, IsUnbiasedOver100000Draws) {
  const Codec codec = GetParam();
  RandomKey key{.seed = 2024, .tensor = static_cast<uint32_t>(codec)};
  for (float x : {0.37f, 0.083f, 0.0101f, 0.7123f, -0.613f, -0.29f, -0.031f}) {
    ++key.step;
    if (codec == Codec::Dyn8Unsigned) x = std::fabs(x);
    std::vector<float> row(128 * 800, x);
    for (size_t i = 0; i < row.size(); i += 128) row[i] = 1.0f;
    OwnedQuantized q(codec, 1, RowBlocks(static_cast<int64_t>(row.size())));
    q.encode(row, Rounding::random(key));
    const std::vector<float> back = q.decode();
    const double s = has_scales(codec) ? reference::scale_value(q.scales()[0]) : 1.0;
    const auto [low, high] = neighbours(codec, x, s);
    double sum = 0;
    size_t n = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      if (i % 128 == 0) continue;
      ASSERT_TRUE(back[i] == static_cast<float>(low) || back[i] == static_cast<float>(high)) << back[i];
      sum += static_cast<double>(back[i]) - x;
      ++n;
    }
    if (low == high) {
      EXPECT_EQ(sum, 0.0);
      continue;
    }
    const double fraction = (x - low) / (high - low);
    const double deviation = (high - low) * std::sqrt(fraction * (1 - fraction) / static_cast<double>(n));
    EXPECT_LT(std::fabs(sum / static_cast<double>(n)), 4.5 * deviation + 0x1p-16 * (high - low)) << x;
  }
}

// The same over different numbers: the summed squares of the elements' z have 128 degrees of freedom.
TEST_P(StochasticCodec, EveryElementIsUnbiased) {
  const Codec codec = GetParam();
  if (codec == Codec::Fp32) GTEST_SKIP() << "exact";
  constexpr int kDraws = 1000;
  const std::vector<float> x = suited(codec, gaussian(128, 21));
  std::vector<double> sum(128, 0.0);
  OwnedQuantized q(codec, 1, RowBlocks(128));
  for (uint32_t step = 0; step < kDraws; ++step) {
    q.encode(x, Rounding::random({.seed = 78, .step = step}));
    const std::vector<float> back = q.decode();
    for (size_t i = 0; i < 128; ++i) sum[i] += static_cast<double>(back[i]) - x[i];
  }
  const double s = has_scales(codec) ? reference::scale_value(q.scales()[0]) : 1.0;
  double squares = 0;
  for (size_t i = 0; i < 128; ++i) {
    const auto [low, high] = neighbours(codec, x[i], s);
    const double fraction = (x[i] - low) / (high - low);
    const double variance = (high - low) * (high - low) * fraction * (1 - fraction) * kDraws;
    squares += sum[i] * sum[i] / variance;
  }
  EXPECT_LT(squares, 128 + 5 * 16);  // mean 128, standard deviation 16
  EXPECT_GT(squares, 128 - 5 * 16);
}

TEST_P(StochasticCodec, DrawsAreTheSameUnderEveryMesh) {
  const RowBlocks row(8 * 176, 176);
  constexpr int64_t kRows = 8;
  const std::vector<float> x = suited(GetParam(), gaussian(static_cast<size_t>(kRows * row.cols), 22));
  const Rounding whole_rounding = Rounding::random({.seed = 5, .step = 1, .micro_batch = 3, .tensor = 11});
  OwnedQuantized whole(GetParam(), kRows, row);
  whole.encode(x, whole_rounding);
  for (int64_t parts : {2, 4, 8}) {
    for (int64_t part = 0; part < parts; ++part) {
      {  // columns cut: a rank has whole segments of every row
        const RowBlocks cut(row.cols / parts, row.segment);
        Rounding rounding = whole_rounding;
        rounding.global_offset.first_block = part * cut.blocks();
        rounding.global_offset.blocks_per_row = row.blocks();
        OwnedQuantized q(GetParam(), kRows, cut);
        std::vector<float> mine;
        for (int64_t r = 0; r < kRows; ++r)
          mine.insert(mine.end(), x.begin() + r * row.cols + part * cut.cols,
                      x.begin() + r * row.cols + (part + 1) * cut.cols);
        q.encode(mine, rounding);
        const int64_t bytes = row_bytes(GetParam(), cut), whole_bytes = row_bytes(GetParam(), row);
        for (int64_t i = 0; i < kRows * bytes; ++i)
          ASSERT_EQ(q.codes()[static_cast<size_t>(i)],
                    whole.codes()[static_cast<size_t>(i / bytes * whole_bytes + part * bytes + i % bytes)]);
      }
      {  // rows cut
        const int64_t rows = kRows / parts;
        Rounding rounding = whole_rounding;
        rounding.global_offset.first_row = part * rows;
        OwnedQuantized q(GetParam(), rows, row);
        q.encode({x.begin() + part * rows * row.cols, x.begin() + (part + 1) * rows * row.cols}, rounding);
        const int64_t bytes = rows * row_bytes(GetParam(), row);
        const std::vector<uint8_t> same(whole.codes().begin() + part * bytes,
                                        whole.codes().begin() + (part + 1) * bytes);
        ASSERT_EQ(q.codes(), same);
      }
    }
  }
}

std::vector<double> errors_of(Codec codec, const std::vector<float>& x, const RandomKey& key) {
  const std::vector<float> back = round_trip(codec, x, Rounding::random(key));
  std::vector<double> e(x.size());
  for (size_t i = 0; i < x.size(); ++i) e[i] = static_cast<double>(back[i]) - x[i];
  return e;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Sum of products over its standard deviation if the errors are independent with mean zero: normal, as n is large.
double correlation_z(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0, squares = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += a[i] * b[i];
    squares += a[i] * b[i] * a[i] * b[i];
  }
  return sum / std::sqrt(squares);
}

// The same numbers on all ranks: the worst case for correlated rounding. Ranks hold different micro-batches; those of a
// pair mirror each other, all others are independent. The mean over 64 independent ranks has 1/8 of one rank's error.
TEST_P(StochasticCodec, DataRanksAreIndependent) {
  if (GetParam() == Codec::Fp32) GTEST_SKIP() << "exact";
  const std::vector<float> x = suited(GetParam(), gaussian(16384, 23));
  const std::vector<double> first = errors_of(GetParam(), x, {.seed = 6});
  std::vector<double> mean(x.size(), 0.0), mean_of_all(x.size(), 0.0);
  for (uint32_t micro_batch = 0; micro_batch < 128; ++micro_batch) {
    const std::vector<double> e = errors_of(GetParam(), x, {.seed = 6, .micro_batch = micro_batch});
    for (size_t i = 0; i < e.size(); ++i) {
      if (micro_batch % 2 == 0) mean[i] += e[i] / 64;
      mean_of_all[i] += e[i] / 128;
    }
    if (micro_batch == 1) {
      EXPECT_LT(correlation_z(first, e), -20);
    } else if (micro_batch > 1) {
      EXPECT_LT(std::fabs(correlation_z(first, e)), 5) << micro_batch;
    }
  }
  EXPECT_NEAR(std::sqrt(dot(mean, mean) / dot(first, first)), 1.0 / 8, 0.1 / 8);
  // Pairs: half the variance of 128 independent ones, a quarter of 64.
  EXPECT_NEAR(std::sqrt(dot(mean_of_all, mean_of_all) / dot(first, first)), 1.0 / 16, 0.1 / 16);
}

TEST(StochasticKeys, EveryPartOfTheKeyMatters) {
  const std::vector<float> x = gaussian(1024, 24);
  const RandomKey base{.seed = 1};
  const std::vector<double> first = errors_of(Codec::Int8, x, base);
  for (const RandomKey& other :
       {RandomKey{.seed = 2}, RandomKey{.seed = 1ull << 32 | 1}, RandomKey{.seed = 1, .stream = RngStream::Sampling},
        RandomKey{.seed = 1, .step = 1}, RandomKey{.seed = 1, .micro_batch = 2}, RandomKey{.seed = 1, .tensor = 1}}) {
    const std::vector<double> e = errors_of(Codec::Int8, x, other);
    EXPECT_LT(std::fabs(correlation_z(first, e)), 5);
  }
  EXPECT_EQ(errors_of(Codec::Int8, x, base), first);
}

}  // namespace
}  // namespace agoq::codec
