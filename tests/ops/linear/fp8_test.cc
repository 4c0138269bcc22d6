#include "ops/linear/fp8.h"

#include <gmock/gmock.h>

#include "base/error_of.h"
#include "ops/support.h"

namespace agoq::ops::test {
namespace {

constexpr Granularity kGranularities[] = {Granularity::Tensor, Granularity::Row, Granularity::Block1x128,
                                          Granularity::Block128x128};
struct Dims {
  int64_t rows, k;
};
// Short and whole blocks along both, and k that is no multiple of 16.
constexpr Dims kDims[] = {{1, 1}, {3, 130}, {128, 256}, {200, 300}};

double value_of(DType dtype, uint32_t code) {
  const auto bits = static_cast<uint8_t>(code);
  return dtype == DType::E4M3 ? to_float(E4M3{bits}) : to_float(E5M2{bits});
}
double largest_of(DType dtype) {
  return dtype == DType::E4M3 ? 448 : 57344;
}

// The value of the format nearest to y by search; of two, that whose code is even.
double nearest(DType dtype, double y) {
  double best = 0, distance = std::abs(y);
  for (uint32_t code = 1; code < 0x80; ++code) {
    const double value = value_of(dtype, code);
    if (!std::isfinite(value)) break;
    const double away = std::abs(std::abs(y) - value);
    if (away < distance || (away == distance && code % 2 == 0)) best = value, distance = away;
  }
  return std::copysign(best, y);
}

// The smallest power of two s with amax / s within the format.
double scale_for(DType dtype, double amax) {
  if (amax == 0) return 0;
  double scale = 1;
  while (amax / scale > largest_of(dtype)) scale *= 2;
  while (scale > std::ldexp(1, -126) && amax / (scale / 2) <= largest_of(dtype)) scale /= 2;
  return scale;
}

// Whether numbers [row, i] and [other, j] share a scale.
bool together(Granularity granularity, int64_t row, int64_t i, int64_t other, int64_t j) {
  switch (granularity) {
    case Granularity::Row:
      return row == other;
    case Granularity::Block1x128:
      return row == other && i / 128 == j / 128;
    case Granularity::Block128x128:
      return row / 128 == other / 128 && i / 128 == j / 128;
    default:
      return true;
  }
}

// The matrix [rows, k] from either of its layouts.
Values matrix_of(const Tensor& x, Major major, const Dims& d) {
  Values m = values(x);
  if (major == Major::K) return m;
  Values t(m.size());
  for (int64_t r = 0; r < d.rows; ++r)
    for (int64_t i = 0; i < d.k; ++i) t[static_cast<size_t>(r * d.k + i)] = m[static_cast<size_t>(i * d.rows + r)];
  return t;
}

struct Case {
  DType dtype;
  Granularity granularity;
  Major major;
};
class Fp8Operand : public testing::TestWithParam<Case> {
 protected:
  Operand make(const Context& ctx, const Tensor& x) const {
    const OperandFormat format{GetParam().dtype, GetParam().granularity};
    return GetParam().major == Major::K ? to_fp8(ctx, x, format) : to_fp8_transposed(ctx, x, format);
  }
  static Shape shape(const Dims& d) { return GetParam().major == Major::K ? Shape{d.rows, d.k} : Shape{d.k, d.rows}; }
  static double decoded(const Operand& x, int64_t row, int64_t i) {
    return value_of(x.dtype(), x.data.raw()[row * x.k() + i]) * x.scale.as<float>()[scale_index(x, row, i)];
  }
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (DType dtype : {DType::E4M3, DType::E5M2})
    for (Granularity granularity : kGranularities)
      for (Major major : {Major::K, Major::MN}) cases.push_back({dtype, granularity, major});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(All, Fp8Operand, testing::ValuesIn(all_cases()), [](const auto& p) {
  return fmt::format("{}_{}_{}", name_of(p.param.dtype), name_of(p.param.granularity),
                     p.param.major == Major::K ? "rows" : "transposed");
});

TEST_P(Fp8Operand, IsTheNearestCodeUnderTheSmallestScale) {
  const auto [dtype, granularity, major] = GetParam();
  for (const Dims& d : kDims)
    for (DType type : {DType::F32, DType::BF16}) {
      TestContext t(type);
      Tensor x = t.random(shape(d));
      for (int64_t i = 0; i < x.count(); i += 7) set(x, i, get(x, i) * 1e-5);  // reaches what is subnormal
      const Values numbers = matrix_of(x, major, d);
      const Operand codes = make(t.ctx, x);
      check_operand(codes, "test");
      ASSERT_EQ(codes.rows(), d.rows);
      for (int64_t row = 0; row < d.rows; row += 1 + d.rows / 11)
        for (int64_t i = 0; i < d.k; i += 1 + d.k / 13) {
          double amax = 0;
          for (int64_t other = 0; other < d.rows; ++other)
            for (int64_t j = 0; j < d.k; ++j)
              if (together(granularity, row, i, other, j))
                amax = std::max(amax, std::abs(numbers[static_cast<size_t>(other * d.k + j)]));
          const double scale = scale_for(dtype, amax), number = numbers[static_cast<size_t>(row * d.k + i)];
          ASSERT_EQ(codes.scale.as<float>()[scale_index(codes, row, i)], scale) << row << ", " << i;
          ASSERT_EQ(decoded(codes, row, i), nearest(dtype, number / scale) * scale) << row << ", " << i;
        }
    }
}

TEST_P(Fp8Operand, PaddingIsZero) {
  TestContext t;
  const Operand codes = make(t.ctx, t.random(shape({5, 19})));
  EXPECT_EQ(codes.k(), padded_k(19, GetParam().granularity));
  for (int64_t row = 0; row < 5; ++row)
    for (int64_t i = 19; i < codes.k(); ++i) EXPECT_EQ(codes.data.raw()[row * codes.k() + i], 0);
}

TEST_P(Fp8Operand, ZerosHaveAScaleOfZeroAndDamageStaysSeen) {
  const Dims d{2, 256};
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    TestContext t;
    const Tensor x = t.zeros(shape(d));
    const auto at = [&](int64_t row, int64_t i) {
      return GetParam().major == Major::K ? row * d.k + i : i * d.rows + row;
    };
    set(x, at(1, 200), bad);
    const Operand codes = make(t.ctx, x);
    for (int64_t row = 0; row < d.rows; ++row)
      for (int64_t i = 0; i < d.k; ++i) {
        const float scale = codes.scale.as<float>()[scale_index(codes, row, i)];
        EXPECT_EQ(codes.data.raw()[row * codes.k() + i], 0);
        if (together(GetParam().granularity, row, i, 1, 200))
          EXPECT_TRUE(std::isnan(scale));
        else
          EXPECT_EQ(scale, 0.0f);
      }
  }
}

// Near the largest and the smallest that fp32 has. No scale makes the largest code overflow, so what is above that
// code under the largest scale becomes it.
TEST_P(Fp8Operand, KeepsEveryMagnitudeFinite) {
  const double largest = largest_of(GetParam().dtype);
  const double highest = largest * std::exp2(std::floor(std::log2(std::numeric_limits<float>::max() / largest)));
  TestContext t;
  const Tensor x = t.zeros(shape({2, 2}));
  for (const double most : {3.4e38, 2.9e38, 1e-38, 1e-45}) {
    for (int64_t i = 0; i < 4; ++i) set(x, i, most);
    const double got = decoded(make(t.ctx, x), 1, 1), kept = std::min<double>(get(x, 0), highest);
    // Below the least scale, 2^-126, the step is that scale's.
    EXPECT_NEAR(got, kept, std::max(kept / 8, std::ldexp(1, -126) * value_of(GetParam().dtype, 1))) << most;
  }
}

TEST_P(Fp8Operand, MetaCountsTheSameBytes) {
  for (const Dims& d : kDims) expect_same_peak(DType::BF16, [&](TestContext& t) { make(t.ctx, t.random(shape(d))); });
}

// The transpose of a matrix holds the same numbers where neither is subnormal, since scales are powers of two.
TEST(Fp8Operands, MatrixAndTransposeAgree) {
  TestContext t;
  const Tensor x = t.random({64, 48});
  const Operand rows = to_fp8(t.ctx, x, {}), columns = to_fp8_transposed(t.ctx, x, {});
  for (int64_t r = 0; r < 64; ++r)
    for (int64_t c = 0; c < 48; ++c) {
      if (std::abs(get(x, r * 48 + c)) < 0.01) continue;  // 2^-9 of the largest, about 4
      const double by_row = to_float(rows.data.as<E4M3>()[r * rows.k() + c]) * rows.scale.as<float>()[r];
      const double by_column = to_float(columns.data.as<E4M3>()[c * columns.k() + r]) * columns.scale.as<float>()[c];
      ASSERT_EQ(by_row, by_column) << r << ", " << c;
    }
}

// Rows whose numbers lie `apart` binades from those of the row before.
Tensor rows_apart(TestContext& t, Shape shape, int apart) {
  Tensor x = t.random(shape);
  for (int64_t i = 0; i < x.count(); ++i) set(x, i, get(x, i) * std::ldexp(1, -apart * static_cast<int>(i / shape[1])));
  return x;
}

// Each number under the scale of the whole, as if it had been made from the row's code: to the nearest, ties to even.
TEST(Fp8Operands, CodesOfRowsAreTurnedUnderTheLargestScale) {
  for (const DType dtype : {DType::E4M3, DType::E5M2})
    for (const int apart : {0, 1, 5, 20}) {
      TestContext t;
      const Operand rows = to_fp8_rows(t.ctx, rows_apart(t, {11, 32}, apart), dtype);
      const Operand turned = to_fp8_transposed(t.ctx, rows, {dtype, Granularity::Tensor});
      check_operand(turned, "test");
      const float* scales = rows.scale.as<float>();
      const double whole = *std::max_element(scales, scales + 11);
      EXPECT_EQ(*rows.max_scale.as<float>(), whole);
      EXPECT_EQ(*turned.scale.as<float>(), whole);
      ASSERT_EQ(turned.data.shape, (Shape{32, 16}));
      for (int64_t r = 0; r < 11; ++r)
        for (int64_t c = 0; c < 32; ++c) {
          const double number = value_of(dtype, rows.data.raw()[r * 32 + c]) * rows.scale.as<float>()[r];
          ASSERT_EQ(value_of(dtype, turned.data.raw()[c * 16 + r]), nearest(dtype, number / whole)) << r << ", " << c;
        }
      for (int64_t c = 0; c < 32; ++c)
        for (int64_t r = 11; r < 16; ++r) ASSERT_EQ(turned.data.raw()[c * 16 + r], 0);
    }
}

TEST(Fp8Operands, CodesOfRowsAreTurnedIntoAnyFormat) {
  TestContext t;
  const Operand rows = to_fp8_rows(t.ctx, t.random({40, 48}), DType::E4M3);
  const Tensor numbers = to_numbers(t.ctx, rows);
  for (int64_t i = 0; i < numbers.count(); ++i)
    ASSERT_EQ(get(numbers, i), value_of(DType::E4M3, rows.data.raw()[i]) * rows.scale.as<float>()[i / 48]);
  for (const OperandFormat format : {OperandFormat{DType::E5M2, Granularity::Tensor}, OperandFormat{},
                                     OperandFormat{DType::E4M3, Granularity::Block1x128}}) {
    const Operand turned = to_fp8_transposed(t.ctx, rows, format), cast = to_fp8_transposed(t.ctx, numbers, format);
    EXPECT_TRUE(std::equal(cast.data.raw(), cast.data.raw() + cast.data.bytes(), turned.data.raw()));
    EXPECT_EQ(values(turned.scale), values(cast.scale));
  }
}

TEST(Fp8Operands, DamageOfARowIsDamageOfTheWhole) {
  TestContext t;
  const Tensor x = t.random({20, 32});
  set(x, 7 * 32 + 1, std::numeric_limits<double>::infinity());
  const Operand rows = to_fp8_rows(t.ctx, x, DType::E4M3),
                turned = to_fp8_transposed(t.ctx, rows, {DType::E4M3, Granularity::Tensor});
  EXPECT_TRUE(std::isnan(*rows.max_scale.as<float>()));
  EXPECT_TRUE(std::isnan(*turned.scale.as<float>()));
  for (size_t i = 0; i < turned.data.bytes(); ++i) ASSERT_EQ(turned.data.raw()[i], 0);
}

TEST(Fp8Operands, ScalesMayBeKnown) {
  TestContext t;
  const Tensor x = t.random({20, 32});
  for (const Granularity granularity : {Granularity::Tensor, Granularity::Row}) {
    const Operand out = fp8_operand(t.ctx, 32, 20, {DType::E4M3, granularity});
    const auto scale = [](int64_t i) { return std::ldexp(0.5, static_cast<int>(i % 3)); };
    for (int64_t i = 0; i < out.scale.count(); ++i) set(out.scale, i, scale(i));
    to_fp8_transposed_with(t.ctx, x, out);
    for (int64_t c = 0; c < 32; ++c)
      for (int64_t r = 0; r < 20; ++r)
        ASSERT_EQ(value_of(DType::E4M3, out.data.raw()[c * 32 + r]),
                  nearest(DType::E4M3, get(x, r * 32 + c) / scale(scale_index(out, c, r))));
  }
  const Operand blocks = fp8_operand(t.ctx, 32, 20, {DType::E4M3, Granularity::Block1x128});
  EXPECT_THAT(error_of([&] { to_fp8_transposed_with(t.ctx, x, blocks); }), testing::HasSubstr("1x128"));
}

// What forward and backward ask kernels for: 8-bit floats by rows, or numbers.
TEST(Fp8Operands, InputsAreByRowsWhereTheRecipeSaysSo) {
  TestContext t(DType::BF16);
  constexpr OperandFormat kRows{DType::E4M3, Granularity::Row}, kOne{DType::E4M3, Granularity::Tensor};
  const Fp8Recipe rowwise{kRows, kRows, {DType::E5M2, Granularity::Row}, kOne, kOne},
      tensorwise{kOne, kOne, kOne, kOne, kOne};
  Context ctx = t.ctx;
  EXPECT_EQ(forward_input(ctx, 4, 32).dtype(), DType::BF16);
  EXPECT_FALSE(fp8_gradient_input(ctx, 4, 32).data);
  ctx.fp8 = &rowwise;
  EXPECT_EQ(forward_input(ctx, 4, 32).dtype(), DType::E4M3);
  EXPECT_EQ(gradient_input(ctx, 4, 32).dtype(), DType::E5M2);
  EXPECT_EQ(forward_input(ctx, 4, 33).dtype(), DType::BF16) << "k would need padding";
  EXPECT_EQ(to_gradient_input(ctx, t.random({4, 32})).dtype(), DType::E5M2);
  ctx.fp8 = &tensorwise;
  EXPECT_EQ(gradient_input(ctx, 4, 32).dtype(), DType::BF16);
  EXPECT_EQ(to_gradient_input(ctx, t.random({4, 32})).dtype(), DType::BF16);
}

TEST(Fp8Operands, ErrorsSayWhatFits) {
  TestContext t;
  EXPECT_THAT(error_of([&] { to_fp8(t.ctx, t.zeros({4}), {}); }), testing::HasSubstr("two dimensions"));
  EXPECT_THAT(error_of([&] {
                to_fp8(t.ctx, t.zeros({4, 4}), {DType::BF16, Granularity::Row});
              }),
              testing::HasSubstr("bf16"));
  Operand odd = to_fp8(t.ctx, t.zeros({4, 32}), {});
  odd.data = odd.data.view({8, 16});
  EXPECT_THAT(error_of([&] { check_operand(odd, "gemm"); }),
              testing::AllOf(testing::HasSubstr("scales [8]"), testing::HasSubstr("[4]")));
  EXPECT_THAT(error_of([&] {
                check_operand(Operand(t.zeros({4, 24}, DType::E4M3), t.zeros({4}), Granularity::Row), "gemm");
              }),
              testing::HasSubstr("padded to 32, not 24"));
  EXPECT_THROW(check_operand(t.zeros({4, 32}, DType::E4M3), "gemm"), Error);
}

}  // namespace
}  // namespace agoq::ops::test
