#include "base/tensor.h"

#include <gtest/gtest.h>

#include <array>

namespace agoq {
namespace {

TEST(Shape, CountsAndPrints) {
  const Shape shape{2, 3, 4};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape.count(), 24);
  EXPECT_EQ(shape.text(), "[2, 3, 4]");
  EXPECT_EQ((Shape{0, 5}).count(), 0);
  EXPECT_EQ(Shape{}.count(), 0);
  EXPECT_EQ(Shape{}.text(), "[]");
  EXPECT_EQ(shape, (Shape{2, 3, 4}));
  EXPECT_FALSE(shape == (Shape{2, 3}));
}

TEST(Shape, RefusesWhatItCannotHold) {
  EXPECT_THROW((Shape{1, 2, 3, 4, 5}), Error);
  EXPECT_THROW((Shape{2, -1}), Error);
  EXPECT_THROW((Shape{int64_t{1} << 40, int64_t{1} << 40}), Error);
}

TEST(Tensor, ViewsShareElements) {
  std::array<float, 12> data{};
  const Tensor x = host_tensor(data.data(), {3, 4});
  EXPECT_EQ(x.bytes(), 48u);
  EXPECT_EQ(x.rows(), 3);
  EXPECT_EQ(x.cols(), 4);
  const Tensor y = x.view({2, 6});
  EXPECT_EQ(y.data, x.data);
  EXPECT_EQ(y.shape, (Shape{2, 6}));
  EXPECT_THROW(x.view({5, 2}), Error);
  EXPECT_THROW(x.as<Bf16>(), Error);
  EXPECT_EQ(x.as<float>(), data.data());
}

TEST(Tensor, RowRanges) {
  std::array<int16_t, 12> data{};
  const Tensor x = host_tensor(data.data(), {3, 4});
  const Tensor rows = x.row_range(1, 3);
  EXPECT_EQ(rows.as<int16_t>(), data.data() + 4);
  EXPECT_EQ(rows.shape, (Shape{2, 4}));
  EXPECT_EQ(x.row_range(3, 3).count(), 0);
  EXPECT_THROW(x.row_range(2, 4), Error);
  EXPECT_THROW(x.row_range(2, 1), Error);
  EXPECT_THROW(x.row_range(-1, 1), Error);
  EXPECT_THROW(x.view({12}).row_range(0, 1), Error);
}

TEST(Tensor, MetaHasNoMemory) {
  const Tensor x{nullptr, DType::BF16, Device::Meta, {8, 16}};
  EXPECT_EQ(x.row_range(4, 8).data, nullptr);
  EXPECT_EQ(x.bytes(), 256u);
  EXPECT_FALSE(Tensor{});
  EXPECT_EQ(Tensor{}.bytes(), 0u);
  EXPECT_EQ(name_of(Device::Meta), "meta");
}

}  // namespace
}  // namespace agoq
