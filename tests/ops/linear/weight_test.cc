#include "ops/linear/weight.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "base/error_of.h"
#include "ops/support.h"

namespace agoq::ops::test {
namespace {

enum class Form { Split, Fp32, Both };

Weight make_weight(TestContext& t, Form form, Shape shape) {
  Weight w;
  w.value = t.zeros(shape, form == Form::Fp32 ? DType::F32 : DType::BF16);
  if (form == Form::Split) w.correction = t.zeros(shape, DType::I16);
  if (form == Form::Both) w.master = t.zeros(shape, DType::F32);
  return w;
}

float from_bits(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

// Random bit patterns, ties, denormals, zeros of both signs, all of which bf16 can hold.
std::vector<float> awkward_values(size_t count) {
  std::vector<float> all = {0.0f,
                            -0.0f,
                            from_bits(1),
                            from_bits(0x80000001u),
                            from_bits(0x7fff),
                            from_bits(0x8000),
                            from_bits(0x007fffff),
                            from_bits(0x00800000),
                            1.0f,
                            -1.0f,
                            from_bits(0x3f808000),
                            from_bits(0x3f818000),
                            from_bits(0xbf7f8000),
                            from_bits(0x7f7f7fff),
                            from_bits(0xff7f7fff)};
  std::mt19937 random(7);
  while (all.size() < count) {
    uint32_t bits = static_cast<uint32_t>(random());
    if (all.size() % 4 == 0) bits = (bits & 0xffff0000u) | 0x8000u;  // a tie
    if (all.size() % 16 == 1) bits &= 0x807fffffu;                   // a denormal
    if ((bits & 0x7fffffffu) < 0x7f7f8000u) all.push_back(from_bits(bits));
  }
  return all;
}

TEST(Weight, AMillionValuesComeBackBitForBit) {
  TestContext t;
  const std::vector<float> x = awkward_values(1'000'000);
  for (Form form : {Form::Split, Form::Fp32, Form::Both}) {
    const Weight w = make_weight(t, form, {1000, 1000});
    store_fp32(t.ctx, w, x.data());
    std::vector<float> back(x.size());
    load_fp32(t.ctx, w, back.data());
    EXPECT_EQ(std::memcmp(back.data(), x.data(), x.size() * sizeof(float)), 0) << static_cast<int>(form);
  }
}

// The neighbours of a bf16 number are one unit of its bits away: none may be nearer to x, and in a tie the larger one
// in magnitude is taken.
TEST(Weight, ValueIsTheNearestBf16TiesAwayFromZero) {
  TestContext t;
  const std::vector<float> x = awkward_values(100'000);
  const Weight w = make_weight(t, Form::Split, {100, 1000});
  store_fp32(t.ctx, w, x.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const uint16_t bits = w.value.as<Bf16>()[i].bits;
    const double exact = std::abs(double{x[i]}), held = std::abs(double{to_float(Bf16{bits})});
    const double above = to_float(Bf16{static_cast<uint16_t>((bits & 0x7fff) + 1)});
    ASSERT_LT(std::abs(held - exact), std::abs(above - exact)) << i;
    if (held > 0) {
      const double below = to_float(Bf16{static_cast<uint16_t>((bits & 0x7fff) - 1)});
      ASSERT_LE(std::abs(held - exact), std::abs(below - exact)) << i;
    }
  }
}

TEST(Weight, AllFormsAreReadAlike) {
  const std::vector<float> x = awkward_values(12'000);
  for (DType compute : {DType::F32, DType::BF16}) {
    TestContext t(compute);
    Scope scope(t.ctx);
    std::vector<Tensor> read;
    for (Form form : {Form::Split, Form::Fp32, Form::Both}) {
      const Weight w = make_weight(t, form, {120, 100});
      store_fp32(t.ctx, w, x.data());
      read.push_back(in_compute_type(t.ctx, w));
      EXPECT_EQ(read.back().dtype, compute);
    }
    for (const Tensor& other : read) EXPECT_EQ(std::memcmp(other.data, read[0].data, read[0].bytes()), 0);
    if (compute == DType::F32) {
      EXPECT_EQ(std::memcmp(read[0].data, x.data(), read[0].bytes()), 0);
    }
  }
}

TEST(Weight, HeldInTheComputeTypeItIsNotCopied) {
  TestContext fp32, bf16(DType::BF16);
  const Weight split = make_weight(bf16, Form::Split, {4, 4}), both = make_weight(bf16, Form::Both, {4, 4});
  const Weight plain = make_weight(fp32, Form::Fp32, {4, 4});
  EXPECT_EQ(in_compute_type(bf16.ctx, split).data, split.value.data);
  EXPECT_EQ(in_compute_type(bf16.ctx, both).data, both.value.data);
  EXPECT_EQ(in_compute_type(fp32.ctx, both).data, both.master.data);
  EXPECT_EQ(in_compute_type(fp32.ctx, plain).data, plain.value.data);
  EXPECT_EQ(fp32.arena.stack_bytes() + bf16.arena.stack_bytes(), 0u);
}

TEST(Weight, RowRangeOfMatrixAndVector) {
  TestContext t;
  for (Shape shape : {Shape{6, 3}, Shape{18}}) {
    const Weight w = make_weight(t, Form::Split, shape);
    const std::vector<float> x = awkward_values(18);
    store_fp32(t.ctx, w, x.data());
    const int64_t cols = shape.rank() == 2 ? 3 : 1;
    const Weight part = w.row_range(2, 5);
    std::vector<float> back(static_cast<size_t>(part.value.count()));
    load_fp32(t.ctx, part, back.data());
    ASSERT_EQ(part.value.count(), 3 * cols);
    for (int64_t i = 0; i < 3 * cols; ++i)
      EXPECT_EQ(back[static_cast<size_t>(i)], x[static_cast<size_t>(2 * cols + i)]);
  }
}

TEST(Weight, NormalNumbersOfAPartAreThoseOfTheWhole) {
  TestContext t(DType::F32);
  constexpr int64_t kRows = 300, kCols = 803;
  const NormalRows numbers{{.seed = 5, .stream = RngStream::Initialization, .tensor = 2}, 0.5f, kCols, 0, 0};
  const Weight whole = make_weight(t, Form::Fp32, {kRows, kCols});
  fill_normal(t.ctx, whole, numbers);
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < whole.value.count(); ++i) {
    const double x = whole.value.as<float>()[i];
    sum += x, squares += x * x;
  }
  const auto n = static_cast<double>(whole.value.count());
  EXPECT_NEAR(sum / n, 0, 4.5 * 0.5 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 0.25, 4.5 * 0.25 * std::sqrt(2 / n));

  const Weight part = make_weight(t, Form::Split, {7, 101});
  NormalRows some = numbers;
  some.first_row = 290, some.first_col = 333;
  fill_normal(t.ctx, part, some);
  std::vector<float> values(7 * 101);
  load_fp32(t.ctx, part, values.data());
  for (int64_t r = 0; r < 7; ++r)
    for (int64_t c = 0; c < 101; ++c)
      ASSERT_EQ(values[static_cast<size_t>(r * 101 + c)],
                whole.value.as<float>()[(some.first_row + r) * kCols + some.first_col + c]);
  some.first_col = 703;
  EXPECT_THROW(fill_normal(t.ctx, part, some), Error);
}

TEST(Weight, RefusesWhatBf16CannotHoldAndNamesIt) {
  TestContext t;
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (float bad : {from_bits(0x7f7f8000), from_bits(0xff7fffff), inf, -inf, nan, from_bits(0x7fffffff)}) {
    std::vector<float> x(16, 1.0f);
    x[5] = x[9] = bad;
    for (Form form : {Form::Split, Form::Both})
      EXPECT_THAT(error_of([&] {
                    store_fp32(t.ctx, make_weight(t, form, {4, 4}), x.data());
                  }),
                  testing::HasSubstr("element 5 of a weight [4, 4]"))
          << bad;
  }
  std::vector<float> largest(16, from_bits(0x7f7fffff));
  EXPECT_NO_THROW(store_fp32(t.ctx, make_weight(t, Form::Fp32, {4, 4}), largest.data()));
}

TEST(Weight, RefusesOtherForms) {
  TestContext t;
  Weight w = make_weight(t, Form::Split, {4, 4});
  w.correction = t.zeros({4, 3}, DType::I16);
  EXPECT_THROW(in_compute_type(t.ctx, w), Error);
  w.correction = {};
  EXPECT_THROW(in_compute_type(t.ctx, w), Error);
}

TEST(Weight, MetaCountsTheSameBytes) {
  for (DType compute : {DType::F32, DType::BF16})
    for (Form form : {Form::Split, Form::Fp32, Form::Both})
      expect_same_peak(compute, [&](TestContext& t) { in_compute_type(t.ctx, make_weight(t, form, {30, 7})); });
}

}  // namespace
}  // namespace agoq::ops::test
