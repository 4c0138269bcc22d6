#include "train/data/sample_order.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/philox.h"

namespace agoq::train {
namespace {

constexpr uint64_t kLongestWindow = 65536;
constexpr uint32_t kFeistelRounds = 8;

uint32_t round_function(uint32_t half, uint32_t round, const OrderKey& key) {
  const auto epoch_high = static_cast<uint32_t>(key.epoch >> 32);
  const Philox4 counter = {half, (round << 24) ^ epoch_high, static_cast<uint32_t>(key.epoch), key.source};
  return philox4x32_7(counter, {static_cast<uint32_t>(key.seed) ^ (static_cast<uint32_t>(RngStream::DataOrder) << 24),
                                static_cast<uint32_t>(key.seed >> 32)})[0];
}

uint64_t feistel(uint64_t x, int half_bits, const OrderKey& key) {
  const uint32_t mask = half_bits == 32 ? ~0u : (1u << half_bits) - 1;
  auto left = static_cast<uint32_t>(x >> half_bits);
  auto right = static_cast<uint32_t>(x) & mask;
  for (uint32_t round = 0; round < kFeistelRounds; ++round) {
    const uint32_t mixed = left ^ (round_function(right, round, key) & mask);
    left = right;
    right = mixed;
  }
  return (uint64_t{left} << half_bits) | right;
}

// Whole numbers that sum to `window`, as close to the shares as rounding allows (largest remainders go up).
std::vector<uint64_t> apportion(std::span<const double> shares, uint64_t window) {
  std::vector<uint64_t> counts;
  for (const double share : shares) counts.push_back(static_cast<uint64_t>(share * static_cast<double>(window)));
  const auto remainder = [&](size_t s) {
    return shares[s] * static_cast<double>(window) - static_cast<double>(counts[s]);
  };
  uint64_t given = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  for (; given < window; ++given) {
    size_t most = 0;
    for (size_t s = 1; s < shares.size(); ++s)
      if (remainder(s) > remainder(most)) most = s;
    ++counts[most];
  }
  return counts;
}

// The shortest window in which every share is a whole number of samples (0.7 and 0.3: ten), or the longest.
uint64_t window_for(std::span<const double> shares) {
  for (uint64_t window = 1; window < kLongestWindow; ++window) {
    const auto is_whole = [&](double share) {
      const double samples = share * static_cast<double>(window);
      return std::abs(samples - std::round(samples)) < 1e-9 * static_cast<double>(window) && samples > 0.5;
    };
    if (std::all_of(shares.begin(), shares.end(), is_whole)) return window;
  }
  return kLongestWindow;
}

}  // namespace

uint64_t permuted(uint64_t index, uint64_t count, const OrderKey& key) {
  require(index < count, "there is no sample {} among {}", index, count);
  const int half_bits = std::max(1, (static_cast<int>(std::bit_width(count - 1)) + 1) / 2);
  do index = feistel(index, half_bits, key);
  while (index >= count);
  return index;
}

Blend::Blend(std::span<const double> weights) {
  require(!weights.empty(), "a blend needs at least one source");
  for (const double weight : weights)
    require(weight > 0 && std::isfinite(weight), "{} is no weight of a data source; weights are positive numbers",
            weight);
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> shares;
  for (const double weight : weights) shares.push_back(weight / sum);

  const uint64_t window = window_for(shares);
  counts_ = apportion(shares, window);
  for (size_t s = 0; s < counts_.size(); ++s)
    require(counts_[s] > 0, "the data weight {} is below 1/{} of the sum and would never be used; leave the source out",
            weights[s], kLongestWindow);

  // The source that is furthest behind its share gives the next sample.
  std::vector<uint64_t> given(weights.size(), 0);
  for (uint64_t j = 0; j < window; ++j) {
    const auto deficit = [&](size_t s) {
      return static_cast<int64_t>(counts_[s] * (j + 1)) - static_cast<int64_t>(given[s] * window);
    };
    size_t most = 0;
    for (size_t s = 1; s < given.size(); ++s)
      if (deficit(s) > deficit(most)) most = s;
    pattern_.push_back({static_cast<uint32_t>(most), static_cast<uint32_t>(given[most]++)});
  }
}

Blend::Pick Blend::pick(uint64_t global_sample) const {
  const PatternEntry slot = pattern_[global_sample % window()];
  return {slot.source, global_sample / window() * counts_[slot.source] + slot.rank};
}

}  // namespace agoq::train
