// How kernels that treat blocks one by one deal them out: a CTA takes eight blocks side by side, one for each
// half-warp, and goes down a few rows with them, so that what depends on columns alone is computed once.
#pragma once

#include <limits>

#include "codec/block_cuda.cuh"

namespace agoq::ops::cuda {

// A half-warp's part: one block of rows [begin, end), the same rows in the whole CTA.
struct Strip {
  int block;  // beyond every row where there is none left
  int lane;   // in the block
  int begin, end;
};

class Strips {
 public:
  static constexpr int kThreads = 128;
  static constexpr int kRows = 4;  // of a strip, or fewer at the end

  Strips(int64_t rows, int64_t blocks)
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
  static constexpr int kLanes = codec::cuda::kLanes, kBlocks = kThreads / kLanes;
  int rows_;
  uint32_t across_;
  codec::cuda::Divisor by_across_;
};

}  // namespace agoq::ops::cuda
