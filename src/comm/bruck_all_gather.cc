#include "comm/bruck_all_gather.h"

#include <algorithm>
#include <vector>

namespace agoq::comm {
namespace {

// The parts one behind the other, beginning with the own: rank, rank + 1, ..., around to rank - 1. So what a round
// sends or receives is one piece.
class RotatedParts {
 public:
  RotatedParts(int rank, std::span<const std::span<uint8_t>> parts) : rank_(static_cast<size_t>(rank)), parts_(parts) {
    for (size_t i = 0; i < parts.size(); ++i) begins_.push_back(begins_.back() + part(i).size());
    bytes_.resize(begins_.back());
    std::copy(part(0).begin(), part(0).end(), bytes_.begin());
  }
  // Parts [begin, end), counted from the own.
  Tensor range(size_t begin, size_t end) {
    return host_tensor(bytes_.data() + begins_[begin], {static_cast<int64_t>(begins_[end] - begins_[begin])});
  }
  void copy_others_back() const {
    for (size_t i = 1; i < parts_.size(); ++i) std::copy_n(bytes_.data() + begins_[i], part(i).size(), part(i).begin());
  }

 private:
  std::span<uint8_t> part(size_t i) const { return parts_[(rank_ + i) % parts_.size()]; }

  size_t rank_;
  std::span<const std::span<uint8_t>> parts_;
  std::vector<size_t> begins_ = {0};
  std::vector<uint8_t> bytes_;
};

}  // namespace

// Before the round with distance d this rank has parts rank .. rank + d - 1; rank + d has as many from rank + d on.
void bruck_all_gather(const HostLink& link, int rank, std::span<const std::span<uint8_t>> parts) {
  const auto ranks = static_cast<int>(parts.size());
  RotatedParts rotated(rank, parts);
  for (int distance = 1; distance < ranks; distance *= 2) {
    const auto have = static_cast<size_t>(distance), now = std::min(have, parts.size() - have);
    const Message to{(rank + ranks - distance) % ranks, rotated.range(0, now)};
    const Message from{(rank + distance) % ranks, rotated.range(have, have + now)};
    link.start({&to, 1}, {&from, 1})->wait();
  }
  rotated.copy_others_back();
}

}  // namespace agoq::comm
