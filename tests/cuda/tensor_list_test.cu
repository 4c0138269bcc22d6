#include "ops/gradient/tensor_list_cuda.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace agoq::ops::cuda {
namespace {

// Runs on the host.
TEST(TensorListScheduler, OfAllTilesMeetsEveryBlockOnce) {
  constexpr int kTile = 128;
  for (const int count : {1, 15, 16, 127, 128, 129, 128 * 128 - 1, 128 * 128, 128 * 128 + 1, 300 * 128 + 77}) {
    std::vector<int> met(static_cast<size_t>(count));
    for (int tile = 0; tile * kTile < count; ++tile) {
      const TensorListScheduler walk = walk_of<kTile>(tile, count);
      int turns = 0;
      for (int at = walk.first; at < walk.end; at += walk.step, ++turns)
        for (int block = at; block < at + kBlocksAtOnce && block < walk.end; ++block)
          ++met.at(static_cast<size_t>(block));
      EXPECT_LE(turns, kTile / kBlocksAtOnce) << "tile " << tile << " of " << count << " blocks";
    }
    EXPECT_EQ(std::count(met.begin(), met.end(), 1), count);
  }
}

// What is under way at a time lies together: the CTAs of a group begin side by side.
TEST(TensorListScheduler, GoesSideBySide) {
  constexpr int kTile = 128, kCount = 200 * kTile;
  for (int tile = 1; tile < 200; ++tile) {
    if (tile % kTogether == 0) continue;
    EXPECT_EQ(walk_of<kTile>(tile, kCount).first, walk_of<kTile>(tile - 1, kCount).first + kBlocksAtOnce);
  }
}

}  // namespace
}  // namespace agoq::ops::cuda
