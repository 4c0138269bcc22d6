#include "base/philox.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

namespace agoq {
namespace {

// Known-answer vectors that the authors publish with Random123 (kat_vectors, philox4x32 with 7 rounds).
TEST(Philox, PublishedVectors) {
  constexpr uint32_t kOnes = 0xffffffffu;
  EXPECT_EQ(philox4x32_7({0, 0, 0, 0}, {0, 0}), (Philox4{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}));
  EXPECT_EQ(philox4x32_7({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Philox4{0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}));
  EXPECT_EQ(philox4x32_7({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Philox4{0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}));
}

// Written from the paper's formulas: S-P network on (L0, R0, L1, R1), multiplication as high and low halves.
Philox4 reference(Philox4 x, uint32_t k0, uint32_t k1) {
  for (uint32_t round = 0; round < 7; ++round) {
    const auto wide = [](uint64_t m, uint64_t v) { return m * v; };
    const uint64_t p0 = wide(0xD2511F53, x[0]), p1 = wide(0xCD9E8D57, x[2]);
    const uint32_t key0 = k0 + round * 0x9E3779B9u, key1 = k1 + round * 0xBB67AE85u;
    x = {uint32_t(p1 >> 32) ^ x[1] ^ key0, uint32_t(p1), uint32_t(p0 >> 32) ^ x[3] ^ key1, uint32_t(p0)};
  }
  return x;
}

TEST(Philox, EqualsAnIndependentImplementation) {
  uint32_t v = 1;
  const auto next = [&] { return v = v * 1664525u + 1013904223u; };
  for (int i = 0; i < 1000; ++i) {
    const Philox4 counter = {next(), next(), next(), next()};
    const uint32_t k0 = next(), k1 = next();
    ASSERT_EQ(philox4x32_7(counter, {k0, k1}), reference(counter, k0, k1));
  }
}

TEST(RandomKey, EveryFieldChangesTheDraw) {
  const RandomKey base{.seed = 7, .stream = RngStream::Gradient, .step = 3, .micro_batch = 2, .tensor = 5};
  std::set<Philox4> draws = {base.draw(11), base.draw(12), base.draw(11 + (uint64_t{1} << 32))};
  RandomKey key = base;
  key.seed = 8, draws.insert(key.draw(11)), key = base;
  key.seed = 7 + (uint64_t{1} << 32), draws.insert(key.draw(11)), key = base;
  key.stream = RngStream::Sampling, draws.insert(key.draw(11)), key = base;
  key.step = 4, draws.insert(key.draw(11)), key = base;
  key.micro_batch = 3, draws.insert(key.draw(11)), key = base;
  key.tensor = 6, draws.insert(key.draw(11)), key = base;
  EXPECT_EQ(draws.size(), 9u);
  EXPECT_EQ(base.draw(11), key.draw(11));
}

TEST(RandomKey, Draws16AreUniform) {
  constexpr int kGroups = 20000, kBins = 64;
  std::vector<double> bins(kBins);
  double mean = 0;
  const RandomKey key{.seed = 42};
  for (uint64_t group = 0; group < kGroups; ++group) {
    const Philox4 words = key.draw(group);
    for (int j = 0; j < 8; ++j) {
      const uint32_t value = draw16(words, j);
      ASSERT_LT(value, 65536u);
      bins[value * kBins / 65536] += 1;
      mean += value;
    }
  }
  constexpr double n = kGroups * 8.0;
  EXPECT_NEAR(mean / n, 32767.5, 5 * 65536 / std::sqrt(12 * n));
  double chi2 = 0;
  for (double count : bins) chi2 += (count - n / kBins) * (count - n / kBins) / (n / kBins);
  EXPECT_LT(chi2, 63 + 5 * std::sqrt(2 * 63.0));
  EXPECT_GT(chi2, 63 - 5 * std::sqrt(2 * 63.0));
}

TEST(RandomKey, Draw16TakesTheHalvesInOrder) {
  const Philox4 words = {0x22221111, 0x44443333, 0x66665555, 0x88887777};
  for (uint32_t j = 0; j < 8; ++j) EXPECT_EQ(draw16(words, static_cast<int>(j)), (j + 1) * 0x1111);
}

TEST(Uniform01, StaysBelowOne) {
  EXPECT_EQ(uniform01(0), 0.0f);
  EXPECT_LT(uniform01(0xffffffffu), 1.0f);
  EXPECT_EQ(uniform01(0x80000000u), 0.5f);
}

TEST(NormalPair, ExtremesAreFinite) {
  for (uint32_t a : {0u, 1u, 0xffffffffu})
    for (uint32_t b : {0u, 1u, 0xffffffffu})
      for (float x : normal_pair(a, b)) EXPECT_TRUE(std::isfinite(x));
  EXPECT_EQ(normal_pair(0xffffffffu, 0)[0], 0.0f);  // u = 1: radius 0
}

// Moments, and the largest distance from the normal distribution (Kolmogorov-Smirnov, 0.1% level).
TEST(NormalPair, IsStandardNormal) {
  constexpr size_t kPairs = 50000;
  std::vector<double> x;
  double mean = 0, variance = 0, kurtosis = 0, correlation = 0;
  const RandomKey key{.seed = 1, .stream = RngStream::Initialization};
  for (uint64_t i = 0; i < kPairs / 2; ++i) {
    const Philox4 w = key.draw(i);
    for (const auto& [p, q] : {normal_pair(w[0], w[1]), normal_pair(w[2], w[3])}) {
      x.insert(x.end(), {p, q});
      correlation += double{p} * double{q} / kPairs;
    }
  }
  const double n = static_cast<double>(x.size());
  for (double v : x) mean += v / n, variance += v * v / n, kurtosis += v * v * v * v / n;
  EXPECT_NEAR(mean, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(variance, 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(kurtosis, 3, 5 * std::sqrt(96 / n));
  EXPECT_NEAR(correlation, 0, 5 / std::sqrt(double{kPairs}));
  std::sort(x.begin(), x.end());
  double distance = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double cdf = 0.5 * std::erfc(-x[i] / std::sqrt(2.0));
    distance = std::max(
        {distance, std::abs(cdf - static_cast<double>(i) / n), std::abs(cdf - (static_cast<double>(i) + 1) / n)});
  }
  EXPECT_LT(distance, 1.95 / std::sqrt(n));
}

}  // namespace
}  // namespace agoq
