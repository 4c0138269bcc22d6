#include "codec/tile_schedulers.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace agoq::codec::cuda {
namespace {

// Runs on the host.
TEST(TensorListScheduler, OfAllTilesMeetsEveryBlockOnce) {
  constexpr int kTile = 128;
  for (const int count : {1, 15, 16, 127, 128, 129, 128 * 128 - 1, 128 * 128, 128 * 128 + 1, 300 * 128 + 77}) {
    std::vector<int> met(static_cast<size_t>(count));
    for (int tile = 0; tile * kTile < count; ++tile) {
      const auto mine = TensorListScheduler::of_tile<kTile>(tile, count);
      int turns = 0;
      for (int at = mine.first; at < mine.end; at += mine.step, ++turns)
        for (int block = at; block < at + TensorListScheduler::kBlocks && block < mine.end; ++block)
          ++met.at(static_cast<size_t>(block));
      EXPECT_LE(turns, kTile / TensorListScheduler::kBlocks) << "tile " << tile << " of " << count << " blocks";
    }
    EXPECT_EQ(std::count(met.begin(), met.end(), 1), count);
  }
}

// What is under way at a time lies together: the CTAs of a group begin side by side.
TEST(TensorListScheduler, GoesSideBySide) {
  constexpr int kTile = 128, kCount = 200 * kTile;
  for (int tile = 1; tile < 200; ++tile) {
    if (tile % TensorListScheduler::kTogether == 0) continue;
    EXPECT_EQ(TensorListScheduler::of_tile<kTile>(tile, kCount).first,
              TensorListScheduler::of_tile<kTile>(tile - 1, kCount).first + TensorListScheduler::kBlocks);
  }
}

}  // namespace
}  // namespace agoq::codec::cuda
