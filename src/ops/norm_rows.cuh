// Rows in the registers of a CTA, for kernels that need sums over a row before they can finish it: each is read once.
#pragma once

#include <algorithm>

#include "codec/block_cuda.cuh"

namespace agoq::ops::cuda {

using codec::cuda::fetch8;
using codec::cuda::Fetched8;
using codec::cuda::kGroup;
using codec::cuda::kLanes;
using codec::cuda::kWholeWarp;
using codec::cuda::Numbers;
using codec::cuda::Place;
using codec::cuda::store8;
using codec::cuda::unpack8;

inline constexpr int kWarp = 32;
inline constexpr int kMostThreads = 512;

// Threads of a CTA whose threads hold `groups` groups of a row: 2 for rows of up to 5120 numbers, 4 for longer ones.
constexpr int most_threads(int groups) {
  return groups == 2 ? 320 : kMostThreads;
}
// CTAs of so many threads that a multiprocessor has registers for, if a thread of two groups has `registers`.
constexpr int at_once(int groups, int registers) {
  return groups == 2 ? 65536 / registers / most_threads(2) : 1;
}

// Numbers that are bf16 or fp32, whichever the tensor is: weights of a norm.
struct AnyNumbers {
  const void* data = nullptr;
  bool bf16 = false;

  AnyNumbers() = default;
  explicit AnyNumbers(const Tensor& t) : data(t.data), bf16(t.dtype == DType::BF16) {}
  __device__ void load8(int64_t first, int n, Numbers& x) const {
    if (bf16)
      unpack8(fetch8(static_cast<const Bf16*>(data) + first, n), x);
    else
      unpack8(fetch8(static_cast<const float*>(data) + first, n), x);
  }
};

// The sum over `lanes` neighbouring lanes, in all of them. Called by whole warps.
template <int kOver = kWarp>
__device__ inline float lane_sum(float x) {
#pragma unroll
  for (int other = kOver / 2; other > 0; other /= 2) x += __shfl_xor_sync(kWholeWarp, x, other);
  return x;
}

// The sum over the CTA, in all its threads, in an order that its size alone decides. Two of them take turns in a loop,
// so that one barrier for each is enough.
class CtaSum {
 public:
  __device__ float operator()(float x) {
    __shared__ float sums[2][kMostThreads / kWarp];
    turn_ ^= 1;
    x = lane_sum(x);
    if (threadIdx.x % kWarp == 0) sums[turn_][threadIdx.x / kWarp] = x;
    __syncthreads();
    float total = 0;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) total += sums[turn_][warp];
    return total;
  }

 private:
  int turn_ = 0;
};

// The thread's group g of a row: half-warps take the blocks in turn.
template <class F>
__device__ inline Place place_in_row(const codec::cuda::Row& row, int g) {
  const int half_warps = static_cast<int>(blockDim.x) / kLanes;
  return row.place<F>(g * half_warps + static_cast<int>(threadIdx.x) / kLanes, static_cast<int>(threadIdx.x) % kLanes);
}

// How many threads hold a row of so many blocks if each has `groups` of its groups.
inline int row_threads(int64_t blocks, int groups) {
  const int64_t lanes = (blocks * kLanes + groups - 1) / groups;
  return static_cast<int>((lanes + kWarp - 1) / kWarp * kWarp);
}

// Calls launch.operator()<kGroups>(threads) with as few groups a thread as will do.
template <class Launch>
void with_row_threads(const codec::RowBlocks& row, Launch&& launch) {
  const int few = row_threads(row.blocks(), 2), many = row_threads(row.blocks(), 4);
  if (few <= most_threads(2)) return launch.template operator()<2>(few);
  require(many <= most_threads(4),
          "a norm over rows of {} numbers ({} blocks) is too long for its CUDA kernel: at most {}", row.cols,
          row.blocks(), int64_t{most_threads(4)} * 4 * kGroup);
  launch.template operator()<4>(many);
}

// CTAs that loop over rows: as many as a GPU runs at once if a thread has 64 registers.
inline dim3 row_ctas(const Context& ctx, int64_t rows, dim3 threads) {
  const int64_t at_once = int64_t{ctx.gpu().multiprocessors()} * std::max(2 * kMostThreads / threads.x, 1u);
  return {static_cast<unsigned>(std::min(rows, at_once))};
}

}  // namespace agoq::ops::cuda
