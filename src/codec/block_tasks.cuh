// How kernels that treat blocks one by one deal them out: the blocks of all rows in order, one to each half-warp, or
// several, `turns`, one after another.
#pragma once

#include <limits>

#include "codec/block_cuda.cuh"

namespace agoq::codec::cuda {

class BlockTasks {
 public:
  static constexpr int kThreads = 256;

  struct Task {
    int64_t row;
    int block;  // beyond every row where there is none to do
    int lane;   // in the block
  };

  BlockTasks(int64_t rows, int64_t blocks_per_row, uint32_t turns = 1)
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
  Divisor divisor_;
};

}  // namespace agoq::codec::cuda
