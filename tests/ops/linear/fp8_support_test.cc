#include "ops/linear/fp8_support.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace agoq::ops {
namespace {

using testing::HasSubstr;

Fp8Recipe recipe(Granularity activations, Granularity weights, Granularity dw) {
  return {{DType::E4M3, activations},
          {DType::E4M3, weights},
          {DType::E4M3, activations},
          {DType::E4M3, dw},
          {DType::E4M3, dw}};
}
const Fp8Recipe tensorwise = recipe(Granularity::Tensor, Granularity::Tensor, Granularity::Tensor);
const Fp8Recipe rowwise = recipe(Granularity::Row, Granularity::Row, Granularity::Tensor);
const Fp8Recipe blockwise = recipe(Granularity::Block1x128, Granularity::Block128x128, Granularity::Block1x128);

TEST(Fp8Support, HopperMultipliesByAllRecipes) {
  for (const Fp8Recipe& r : {tensorwise, rowwise, blockwise}) EXPECT_EQ(why_no_fp8({9, 0}, r), "");
}

TEST(Fp8Support, GpusBeforeAdaMultiplyByNone) {
  for (const ComputeCapability gpu : {ComputeCapability{8, 0}, {8, 6}, {8, 7}, {7, 5}})
    for (const Fp8Recipe& r : {tensorwise, rowwise, blockwise}) {
      const std::string why = why_no_fp8(gpu, r);
      EXPECT_THAT(why, HasSubstr(fmt::format("(compute capability {}.{})", gpu.major, gpu.minor)));
      EXPECT_THAT(why, HasSubstr("leave out --fp8-format"));
      EXPECT_EQ(why.find('\n'), std::string::npos);
    }
}

// GPUs with tensor cores for 8-bit floats that are not Hopper: Ada, and Blackwell for data centres and for desks.
TEST(Fp8Support, OthersMultiplyByOneScaleForATensor) {
  for (const ComputeCapability gpu : {ComputeCapability{8, 9}, {10, 0}, {10, 3}, {12, 0}}) {
    EXPECT_EQ(why_no_fp8(gpu, tensorwise), "");
    EXPECT_THAT(why_no_fp8(gpu, rowwise),
                HasSubstr("a scale per row only on Hopper (9.0); use --fp8-recipe tensorwise or delayed"));
    EXPECT_THAT(why_no_fp8(gpu, blockwise), HasSubstr("a scale per 1x128 only on Hopper"));
  }
}

// What dW reads counts if it is made in 8-bit floats.
TEST(Fp8Support, OfDwCountsIfItIsIn8BitFloats) {
  Fp8Recipe r = recipe(Granularity::Tensor, Granularity::Tensor, Granularity::Row);
  EXPECT_THAT(why_no_fp8({8, 9}, r), HasSubstr("a scale per row"));
  r.dw_dy.dtype = r.dw_x.dtype = DType::BF16;
  EXPECT_EQ(why_no_fp8({8, 9}, r), "");
}

}  // namespace
}  // namespace agoq::ops
