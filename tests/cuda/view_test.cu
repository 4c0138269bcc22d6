// What kernels are told of a tensor is computed on the host, so these tests need no GPU.
#include <gtest/gtest.h>

#include "codec/lane_tile.cuh"

namespace agoq::codec::cuda {
namespace {

TEST(QuantRows, OfNothingKeptHasNoBlocks) {
  const QuantRows view{Quantized{}};
  EXPECT_EQ(view.codes, nullptr);
  EXPECT_EQ(view.row.blocks, 0);
}

TEST(QuantRows, OfATensorNotKeptStillDividesItsRows) {
  Quantized q;
  q.row = RowBlocks(512, 256);
  EXPECT_EQ(QuantRows(q).row.blocks, 4);
}

TEST(FastDivmod, DividesAsDivisionDoes) {
  for (const uint32_t d : {1u, 2u, 3u, 7u, 11u, 128u, 1376u, 65537u}) {
    const FastDivmod divisor(d);
    for (const uint32_t n : {0u, 1u, d - 1, d, d + 1, 1000003u, (1u << 31) - 1})
      EXPECT_EQ(divisor.divide(n), n / d) << n << " / " << d;
  }
}

}  // namespace
}  // namespace agoq::codec::cuda
