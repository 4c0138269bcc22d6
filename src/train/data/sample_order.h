// Which sample comes when, as pure functions of the seed and the global sample index: the same under every mesh,
// resumable at any point, and without an index table of the size of the data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace agoq::train {

struct OrderKey {
  uint64_t seed = 0;
  uint32_t source = 0;
  uint64_t epoch = 0;
};

// Where `index` goes in a pseudo-random permutation of [0, count): a Feistel network with Philox as its round function
// over the next power of four, walked until it lands inside (Black and Rogaway, 2002).
uint64_t permuted(uint64_t index, uint64_t count, const OrderKey& key);

// Mixes sources by weight, evenly: no source is ever a whole sample ahead of its share. The pattern repeats after a
// window in which every source has a whole number of samples, so any position is found at once.
class Blend {
 public:
  explicit Blend(std::span<const double> weights);  // positive, of any sum

  struct Pick {
    size_t source = 0;
    uint64_t index = 0;  // how many samples this source gave before
  };
  Pick pick(uint64_t global_sample) const;

  uint64_t window() const { return pattern_.size(); }
  std::span<const uint64_t> samples_per_window() const { return counts_; }

 private:
  struct PatternEntry {
    uint32_t source;
    uint32_t rank;  // among the slots of this source
  };
  std::vector<uint64_t> counts_;  // per source
  std::vector<PatternEntry> pattern_;
};

}  // namespace agoq::train
