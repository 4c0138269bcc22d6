#include "base/rectangle.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "base/stored_tensor.h"

namespace agoq {
namespace {

using Random = std::mt19937;

int64_t draw(Random& random, int64_t below) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(below));
}

Rectangle random_rectangle(Random& random, const Rectangle& whole) {
  Rectangle r;
  r.row_begin = draw(random, whole.rows());
  r.row_end = r.row_begin + 1 + draw(random, whole.rows() - r.row_begin);
  r.col_begin = draw(random, whole.cols());
  r.col_end = r.col_begin + 1 + draw(random, whole.cols() - r.col_begin);
  return r;
}

// Cuts in two at random until pieces are small.
void cut(Random& random, const Rectangle& r, std::vector<Rectangle>& pieces) {
  const bool by_rows = r.rows() > 1 && (r.cols() == 1 || draw(random, 2) == 0);
  if (r.count() <= 4 || (!by_rows && r.cols() == 1)) return pieces.push_back(r);
  Rectangle a = r, b = r;
  if (by_rows)
    a.row_end = b.row_begin = r.row_begin + 1 + draw(random, r.rows() - 1);
  else
    a.col_end = b.col_begin = r.col_begin + 1 + draw(random, r.cols() - 1);
  cut(random, a, pieces);
  cut(random, b, pieces);
}

// Counts at every place, one by one.
std::optional<CoverFlaw> first_flaw(std::span<const Rectangle> pieces, const Rectangle& whole) {
  for (int64_t row = whole.row_begin; row < whole.row_end; ++row)
    for (int64_t col = whole.col_begin; col < whole.col_end; ++col) {
      CoverFlaw flaw{row, col, {}};
      for (size_t i = 0; i < pieces.size(); ++i)
        if (pieces[i].contains({row, row + 1, col, col + 1})) flaw.pieces.push_back(i);
      if (flaw.pieces.size() != 1) return flaw;
    }
  return std::nullopt;
}

void expect_same_flaw(std::span<const Rectangle> pieces, const Rectangle& whole) {
  const auto expected = first_flaw(pieces, whole), found = find_cover_flaw(pieces, whole);
  ASSERT_EQ(found.has_value(), expected.has_value());
  if (!found) return;
  EXPECT_EQ(found->row, expected->row);
  EXPECT_EQ(found->col, expected->col);
  EXPECT_EQ(found->pieces.empty(), expected->pieces.empty());
  for (const size_t i : found->pieces)
    EXPECT_TRUE(std::find(expected->pieces.begin(), expected->pieces.end(), i) != expected->pieces.end());
}

TEST(Rectangle, FindsTheFirstGapAndTheFirstOverlap) {
  Random random(7);
  for (int round = 0; round < 2000; ++round) {
    const Rectangle whole{0, 1 + draw(random, 9), 0, 1 + draw(random, 9)};
    std::vector<Rectangle> pieces;
    cut(random, whole, pieces);
    std::shuffle(pieces.begin(), pieces.end(), random);
    EXPECT_EQ(find_cover_flaw(pieces, whole), std::nullopt) << whole.text();
    switch (round % 4) {
      case 0:
        pieces.pop_back();
        break;
      case 1:
        pieces.push_back(random_rectangle(random, whole));
        break;
      case 2:
        pieces.back() = random_rectangle(random, whole);
        break;
      default:
        break;
    }
    expect_same_flaw(pieces, whole);
  }
}

TEST(Rectangle, CopiesTheNumbersThatTwoHaveInCommon) {
  Random random(9);
  for (int round = 0; round < 500; ++round) {
    const Rectangle whole{0, 7, 0, 11};
    const Rectangle a = random_rectangle(random, whole), b = random_rectangle(random, whole);
    const auto number = [](int64_t row, int64_t col) { return static_cast<int16_t>(1 + row * 100 + col); };
    std::vector<int16_t> from, to(static_cast<size_t>(b.count()));
    for (int64_t row = a.row_begin; row < a.row_end; ++row)
      for (int64_t col = a.col_begin; col < a.col_end; ++col) from.push_back(number(row, col));
    copy_part({reinterpret_cast<const uint8_t*>(from.data()), a}, {reinterpret_cast<uint8_t*>(to.data()), b},
              intersection(a, b), sizeof(int16_t));
    size_t i = 0;
    for (int64_t row = b.row_begin; row < b.row_end; ++row)
      for (int64_t col = b.col_begin; col < b.col_end; ++col)
        ASSERT_EQ(to[i++], a.contains({row, row + 1, col, col + 1}) ? number(row, col) : 0);
  }
}

TEST(Rectangle, OfATensorCountsTheLastDimensionAsColumns) {
  EXPECT_EQ(whole_of(std::vector<int64_t>{5}), (Rectangle{0, 1, 0, 5}));
  EXPECT_EQ(whole_of(std::vector<int64_t>{2, 3, 4}), (Rectangle{0, 6, 0, 4}));
  EXPECT_EQ(whole_of(std::vector<int64_t>{}), (Rectangle{0, 1, 0, 1}));
  EXPECT_TRUE(whole_of(std::vector<int64_t>{4, 0}).empty());
}

TEST(StoredTensor, RefusesPiecesThatDoNotFit) {
  std::vector<float> numbers(12);
  const auto of = [&](const Rectangle& at, const Tensor& data) {
    return StoredTensor("t", DType::F32, {6, 4}, {{at, data}});
  };
  EXPECT_NO_THROW(of({1, 4, 0, 4}, host_tensor(numbers.data(), {3, 4})).check(Device::Cpu));
  EXPECT_NO_THROW(of({0, 6, 2, 4}, host_tensor(numbers.data(), {12})).check(Device::Cpu));
  EXPECT_THROW(of({1, 4, 0, 4}, host_tensor(numbers.data(), {2, 4})).check(Device::Cpu), Error);
  EXPECT_THROW(of({4, 7, 0, 4}, host_tensor(numbers.data(), {3, 4})).check(Device::Cpu), Error);
  EXPECT_THROW(of({4, 1, 0, 4}, host_tensor(numbers.data(), {3, 4})).check(Device::Cpu), Error);
  EXPECT_THROW(of({1, 4, 0, 4}, {}).check(Device::Cpu), Error);
  EXPECT_THROW(of({1, 4, 0, 4}, host_tensor(numbers.data(), {3, 4})).check(Device::Cuda), Error);
  EXPECT_THROW(
      StoredTensor("t", DType::I32, {3, 4}, {{{0, 3, 0, 4}, host_tensor(numbers.data(), {3, 4})}}).check(Device::Cpu),
      Error);
}

TEST(StoredTensor, GoesByRangesOfRows) {
  std::vector<float> numbers(12);
  std::vector<Rectangle> seen;
  for_row_ranges({{2, 5, 4, 8}, host_tensor(numbers.data(), {12})}, 9, [&](const Rectangle& at, const Tensor& part) {
    seen.push_back(at);
    EXPECT_EQ(part.count(), at.count());
    EXPECT_EQ(part.as<float>(), numbers.data() + (at.row_begin - 2) * 4);
  });
  EXPECT_EQ(seen, (std::vector<Rectangle>{{2, 4, 4, 8}, {4, 5, 4, 8}}));
}

}  // namespace
}  // namespace agoq
