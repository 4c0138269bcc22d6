#include "train/data/sample_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "base/error.h"

namespace agoq::train {
namespace {

std::vector<uint64_t> order(uint64_t count, const OrderKey& key) {
  std::vector<uint64_t> values;
  for (uint64_t i = 0; i < count; ++i) values.push_back(permuted(i, count, key));
  return values;
}

TEST(Permuted, IsAPermutationOfEverySize) {
  for (const uint64_t count : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 255, 257, 1000, 4096, 4097, 100000}) {
    for (const uint64_t seed : {0, 1, 12345}) {
      std::vector<uint64_t> values = order(count, {seed, 3, 7});
      std::sort(values.begin(), values.end());
      std::vector<uint64_t> identity(count);
      std::iota(identity.begin(), identity.end(), 0);
      ASSERT_EQ(values, identity) << count << " samples, seed " << seed;
    }
  }
}

TEST(Permuted, StaysInRangeForHugeCounts) {
  for (const uint64_t count : {uint64_t{1} << 40, (uint64_t{1} << 40) + 1, (uint64_t{1} << 63) + 5, ~uint64_t{0}}) {
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < 2000; ++i) {
      seen.insert(permuted(i, count, {1, 0, 0}));
      seen.insert(permuted(count - 1 - i, count, {1, 0, 0}));
    }
    EXPECT_EQ(seen.size(), 4000u);
    EXPECT_LT(*seen.rbegin(), count);
  }
  EXPECT_THROW(permuted(5, 5, {}), Error);
}

// Each statistic has a known mean and variance under random permutations; five standard deviations are allowed.
TEST(Permuted, LooksRandom) {
  constexpr uint64_t kCount = 50000;
  for (const OrderKey key : {OrderKey{0, 0, 0}, OrderKey{1, 0, 0}, OrderKey{0, 1, 0}, OrderKey{0, 0, 1}}) {
    const std::vector<uint64_t> values = order(kCount, key);
    double serial = 0, with_identity = 0, fixed = 0, ascents = 0;
    const double mean = (kCount - 1) / 2.0;
    const double variance = (double{kCount} * kCount - 1) / 12.0;
    for (uint64_t i = 0; i < kCount; ++i) {
      const double value = static_cast<double>(values[i]) - mean;
      with_identity += value * (static_cast<double>(i) - mean);
      fixed += values[i] == i;
      if (i == 0) continue;
      serial += value * (static_cast<double>(values[i - 1]) - mean);
      ascents += values[i] > values[i - 1];
    }
    const double deviation = 1 / std::sqrt(double{kCount});
    EXPECT_LT(std::abs(with_identity / (kCount * variance)), 5 * deviation);
    EXPECT_LT(std::abs(serial / (kCount * variance)), 5 * deviation);
    EXPECT_LE(fixed, 10);  // Poisson with mean 1
    EXPECT_LT(std::abs(ascents - (kCount - 1) / 2.0), 5 * std::sqrt((kCount + 1) / 12.0));
  }
}

TEST(Permuted, OrdersOfDifferentEpochsSeedsAndSourcesShareNothing) {
  constexpr uint64_t kCount = 10000;
  const std::vector<uint64_t> first = order(kCount, {5, 0, 0});
  EXPECT_EQ(first, order(kCount, {5, 0, 0}));
  for (const OrderKey key : {OrderKey{5, 0, 1}, OrderKey{6, 0, 0}, OrderKey{5, 1, 0}, OrderKey{5, 0, uint64_t{1} << 32},
                             OrderKey{5 + (uint64_t{1} << 32), 0, 0}}) {
    const std::vector<uint64_t> second = order(kCount, key);
    int equal = 0;
    for (uint64_t i = 0; i < kCount; ++i) equal += first[i] == second[i];
    EXPECT_LE(equal, 10);
  }
}

// A Feistel network over so few bits cannot make every permutation, but no place may be favoured.
TEST(Permuted, SmallSetsFavourNoPlace) {
  for (const uint64_t count : {3, 6, 10}) {
    constexpr int kEpochs = 20000;
    std::vector<int> landed(count * count, 0);
    for (uint64_t epoch = 0; epoch < kEpochs; ++epoch)
      for (uint64_t i = 0; i < count; ++i) ++landed[i * count + permuted(i, count, {9, 0, epoch})];
    const double expected = kEpochs / static_cast<double>(count);
    for (const int hits : landed) EXPECT_NEAR(hits, expected, 5 * std::sqrt(expected));
  }
}

TEST(Blend, OneSourceIsItself) {
  const double weight[] = {0.3};
  const Blend blend(weight);
  for (uint64_t g = 0; g < 10; ++g) {
    EXPECT_EQ(blend.pick(g).source, 0u);
    EXPECT_EQ(blend.pick(g).index, g);
  }
}

TEST(Blend, GivesEachSourceItsShareAtEveryMoment) {
  const std::vector<std::vector<double>> mixes = {
      {0.7, 0.3}, {1, 1}, {1, 2, 3}, {0.61803, 0.2, 0.18197}, {1e-3, 5, 0.123456}, {3, 1, 4, 1, 5, 9, 2, 6}};
  for (const auto& weights : mixes) {
    const Blend blend(weights);
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<uint64_t> taken(weights.size(), 0);
    for (uint64_t g = 0; g < 3 * blend.window() && g < 200000; ++g) {
      const Blend::Pick pick = blend.pick(g);
      ASSERT_EQ(pick.index, taken[pick.source]) << "samples of a source come in order, none is skipped";
      ++taken[pick.source];
      for (size_t s = 0; s < weights.size(); ++s) {
        const double share = weights[s] / sum * static_cast<double>(g + 1);
        const double rounding = static_cast<double>(g + 1) / 65536;  // of the weights
        ASSERT_LT(static_cast<double>(taken[s]), share + 1 + rounding) << "source " << s << " at sample " << g;
        ASSERT_GT(static_cast<double>(taken[s]), share - 2 - rounding) << "source " << s << " at sample " << g;
      }
    }
  }
}

TEST(Blend, SimpleWeightsAreExactInAShortWindow) {
  const double weights[] = {0.7, 0.3};
  const Blend blend(weights);
  EXPECT_EQ(blend.window(), 10u);
  EXPECT_EQ(blend.samples_per_window()[0], 7u);
  EXPECT_EQ(blend.samples_per_window()[1], 3u);
  const Blend::Pick far = blend.pick(10'000'000'000'000);  // found without counting up to it
  EXPECT_EQ(far.index, (far.source == 0 ? 7u : 3u) * 1'000'000'000'000);
}

TEST(Blend, RefusesImpossibleWeights) {
  for (const auto& weights : std::vector<std::vector<double>>{{}, {0}, {1, -1}, {1, NAN}, {1, INFINITY}, {1, 1e-9}})
    EXPECT_THROW(Blend{weights}, Error);
}

}  // namespace
}  // namespace agoq::train
