// How kernels that treat blocks one by one deal them out to half-warps: those of one tensor, or of a list of them.
#pragma once

#include <limits>
#include <vector>

#include "codec/block_cuda.cuh"

namespace agoq::codec::cuda {

// The blocks of all rows in order, one to each half-warp, or several, `turns`, one after another.
class BlockScheduler {
 public:
  static constexpr int kThreads = 256;

  struct Task {
    int64_t row;
    int block;  // beyond every row where there is none to do
    int lane;   // in the block
  };

  BlockScheduler(int64_t rows, int64_t blocks_per_row, uint32_t turns = 1)
      : turns_(turns),
        count_(static_cast<uint32_t>(rows * blocks_per_row)),
        per_row_(static_cast<uint32_t>(blocks_per_row)),
        divisor_(per_row_) {
    require(rows * blocks_per_row <= std::numeric_limits<int32_t>::max(),
            "a tensor of {} rows of {} blocks has more than 2^31 blocks: use smaller micro-batches", rows,
            blocks_per_row);
  }
  dim3 grid() const { return {(count_ + kPerTurn * turns_ - 1) / (kPerTurn * turns_)}; }

  __device__ Task mine(uint32_t turn = 0) const {
    const uint32_t i = (blockIdx.x * turns_ + turn) * kPerTurn + threadIdx.x / kLanes;
    const int lane = static_cast<int>(threadIdx.x % kLanes);
    if (i >= count_) return {0, kNone, lane};
    const uint32_t row = divisor_.divide(i);
    return {row, static_cast<int>(i - row * per_row_), lane};
  }

 private:
  static constexpr uint32_t kPerTurn = kThreads / kLanes;
  static constexpr int kNone = 1 << 30;
  uint32_t turns_, count_, per_row_;
  FastDivmod divisor_;
};

// A half-warp's part: one block of rows [begin, end), the same rows in the whole CTA.
struct Strip {
  int block;  // beyond every row where there is none left
  int lane;   // in the block
  int begin, end;
};

// A CTA takes eight blocks side by side, one for each half-warp, and goes down a few rows with them, so that what
// depends on columns alone is computed once.
class StripScheduler {
 public:
  static constexpr int kThreads = 128;
  static constexpr int kRows = 4;  // of a strip, or fewer at the end

  StripScheduler(int64_t rows, int64_t blocks)
      : rows_(static_cast<int>(rows)),
        across_(static_cast<uint32_t>((blocks + kBlocks - 1) / kBlocks)),
        by_across_(across_) {
    require(rows * across_ <= std::numeric_limits<int32_t>::max(),
            "a tensor of {} rows of {} blocks is too large for one kernel: use smaller micro-batches", rows, blocks);
  }
  dim3 grid() const { return {across_ * static_cast<uint32_t>((rows_ + kRows - 1) / kRows)}; }

  __device__ Strip mine() const {
    const uint32_t down = by_across_.divide(blockIdx.x), across = blockIdx.x - down * across_;
    const int begin = static_cast<int>(down) * kRows;
    return {static_cast<int>(across * kBlocks + threadIdx.x / kLanes), static_cast<int>(threadIdx.x % kLanes), begin,
            min(begin + kRows, rows_)};
  }

 private:
  static constexpr int kBlocks = kThreads / kLanes;
  int rows_;
  uint32_t across_;
  FastDivmod by_across_;
};

// --- lists of tensors ------------------------------------------------------------------------------------------------

// What a kernel that goes over all tensors of a model in one launch knows of each: hundreds of launches for small ones
// would cost more than their work. Tensor i has tiles first[i] to first[i + 1].
template <class Entry>
struct TensorList {
  static constexpr int kMost = 192;  // a kernel's parameters are at most 32764 bytes
  static_assert(kMost * (sizeof(Entry) + sizeof(int)) < 32000);
  int count = 0;
  int first[kMost + 1] = {};
  Entry entries[kMost];

  void add(const Entry& entry, int64_t tiles) {
    entries[count] = entry;
    first[count + 1] = first[count] + static_cast<int>(tiles);
    ++count;
  }
  bool full() const { return count == kMost; }
  int tiles() const { return first[count]; }
  __device__ int tensor_of(int tile) const {
    int low = 0, high = count;  // first[low] <= tile < first[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first[middle] <= tile ? low : high) = middle;
    }
    return low;
  }
};

template <class Entry>
void append(std::vector<TensorList<Entry>>& lists, const Entry& entry, int64_t tiles) {
  if (lists.empty() || lists.back().full()) lists.emplace_back();
  lists.back().add(entry, tiles);
}

// Which blocks of a tensor a CTA works on, kBlocks at a time: [first, first + kBlocks), then `step` further, below
// `end`.
struct TensorListScheduler {
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = kThreads / kLanes;
  static constexpr int kTogether = 128;  // CTAs

  int first, end, step;

  // Of the CTA for tile `tile` of a tensor of `count` blocks. kTogether CTAs go over their whole tiles side by side:
  // DRAM is fastest where all that is under way at a time lies close together, in few of its rows. (With a tile for
  // each, AdamW had 73% of the bandwidth of a copy; like this, 94%.)
  template <int kTile>
  AGOQ_HD static TensorListScheduler of_tile(int tile, int count) {
    static_assert(kTile % kBlocks == 0);
    const int whole_tiles = count / kTile;
    if (tile >= whole_tiles) return {tile * kTile, count, kBlocks};
    const int place = tile % kTogether, first_tile = tile - place;
    const int left = whole_tiles - first_tile, together = left < kTogether ? left : kTogether;
    return {first_tile * kTile + place * kBlocks, (first_tile + together) * kTile, together * kBlocks};
  }
};

}  // namespace agoq::codec::cuda
