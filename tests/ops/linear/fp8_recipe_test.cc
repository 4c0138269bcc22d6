// A context with an Fp8Recipe: the products of a linear layer are those of operands made by hand.
#include <gmock/gmock.h>

#include "base/error_of.h"
#include "ops/gradient/accumulate.h"
#include "ops/linear/fp8.h"
#include "ops/linear/linear.h"
#include "ops/support.h"

namespace agoq::ops::test {
namespace {

constexpr OperandFormat kRow{DType::E4M3, Granularity::Row}, kGradient{DType::E5M2, Granularity::Row};
constexpr OperandFormat kTokens{DType::E4M3, Granularity::Block1x128}, kWeight{DType::E4M3, Granularity::Block128x128};

// Along tokens other formats than along features, so that none of a pair can be taken for the other.
constexpr OperandFormat kTensor{DType::E4M3, Granularity::Tensor}, kGradientTensor{DType::E5M2, Granularity::Tensor};
constexpr Fp8Recipe kRowsAndWhole = {kRow, kRow, kGradient, kGradientTensor, kTensor};
constexpr Fp8Recipe kMixed = {kTensor, kRow, kGradient, kGradientTensor, kRow};

struct Fp8Linear : testing::TestWithParam<Fp8Recipe> {
  TestContext t{DType::BF16};
  Tensor x = t.random({50, 70}), w = t.random({90, 70}, 0.1), dy = t.random({50, 90}), y = t.random({50, 90});
  MainGrad grad = t.grad(90, 70);
  Context fp8 = t.ctx;
  void SetUp() override { fp8.fp8 = &GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Recipes, Fp8Linear,
                         testing::Values(Fp8Recipe{kRow, kRow, kRow, kRow, kRow},
                                         Fp8Recipe{kRow, kRow, kGradient, kGradient, kRow},
                                         Fp8Recipe{kTokens, kWeight, kTokens, kTokens, kTokens}, kMixed,
                                         kRowsAndWhole));

TEST_P(Fp8Linear, ForwardTakesOperandsOfTheRecipe) {
  const Fp8Recipe& r = GetParam();
  const Operand x8 = to_fp8(t.ctx, x, r.x), w8 = to_fp8(t.ctx, w, r.w);
  EXPECT_EQ(values(linear(fp8, x, w)), values(linear(t.ctx, x8, w8)));
  EXPECT_EQ(values(linear(fp8, x8, w)), values(linear(t.ctx, x8, w8))) << "an operand stays as it is";
  const Tensor sum = t.zeros({50, 90});
  for (int64_t i = 0; i < y.count(); ++i) set(sum, i, get(y, i));
  linear_add(fp8, x, w, y);
  linear_add(t.ctx, x8, w8, sum);
  EXPECT_EQ(values(y), values(sum));
}

TEST_P(Fp8Linear, BackwardTakesOperandsOfTheRecipe) {
  const Fp8Recipe& r = GetParam();
  EXPECT_EQ(values(linear_dx(fp8, dy, w)),
            values(linear(t.ctx, to_fp8(t.ctx, dy, r.dy), to_fp8_transposed(t.ctx, w, r.w))));
  accumulate_dw(fp8, grad, dy, x);
  const MainGrad by_hand = t.grad(90, 70);
  accumulate_dw(t.ctx, by_hand, to_fp8_transposed(t.ctx, dy, r.dw_dy), to_fp8_transposed(t.ctx, x, r.dw_x), r.dw);
  EXPECT_EQ(values(grad.data.plain()), values(by_hand.data.plain()));
}

// A weight with a place for the scales of its transpose: forward leaves them, and backward has no need to look for
// them.
TEST(Fp8Weight, BackwardTakesTheScalesThatForwardLeft) {
  for (const OperandFormat format : {kRow, kTensor}) {
    TestContext t(DType::BF16);
    Context fp8 = t.ctx;
    const Fp8Recipe recipe{format, format, format, kTensor, kTensor};
    fp8.fp8 = &recipe;
    const Tensor x = t.random({50, 70}), dy = t.random({50, 96}), numbers = t.random({96, 70}, 0.1);
    set(numbers, 5, 3.0);
    for (int64_t row = 0; row < 96; ++row) set(numbers, row * 70 + 7, 0.0);
    const Values forward = values(linear(fp8, x, numbers)), backward = values(linear_dx(fp8, dy, numbers));
    const bool by_row = format == kRow;
    const LinearWeight w(numbers, t.zeros({by_row ? 70 : 1}, DType::F32));
    EXPECT_EQ(values(linear(fp8, x, w)), forward);
    EXPECT_EQ(get(w.transposed_scale, by_row ? 5 : 0), 1.0 / 128) << "the least power of two above 3 / 448";
    if (by_row) {
      EXPECT_EQ(get(w.transposed_scale, 7), 0.0) << "a column of zeros";
      EXPECT_LE(get(w.transposed_scale, 6), 1.0 / 512) << "a column of small numbers";
    }
    EXPECT_EQ(values(linear_dx(fp8, dy, w)), backward);
    EXPECT_EQ(linear_dx(fp8, dy, w).shape, (Shape{50, 70}));
    // They are those that forward has left, and no others.
    const Tensor before = t.filled(
        w.transposed_scale.shape, [](int64_t) { return 1.0; }, DType::F32);
    const Operand turned{to_fp8_transposed(t.ctx, numbers, format).data, before, format.granularity};
    to_fp8_transposed_with(t.ctx, numbers, turned);
    EXPECT_EQ(values(linear_dx(fp8, dy, LinearWeight(numbers, before))),
              values(linear(t.ctx, to_fp8(t.ctx, dy, format), turned)));
  }
}

TEST(Fp8Weight, ScalesOfTheTransposeHaveItsShape) {
  TestContext t(DType::BF16);
  const Tensor w = t.random({96, 64});
  const auto cast = [&](const Tensor& scale, Granularity granularity) {
    return error_of([&] {
      weight_to_fp8_into(t.ctx, w, fp8_operand(t.ctx, 96, 64, {DType::E4M3, granularity}), scale);
    });
  };
  EXPECT_THAT(cast(t.zeros({96}, DType::F32), Granularity::Row), testing::HasSubstr("[96] as scales of its transpose"));
  EXPECT_THAT(cast(t.zeros({64}, DType::BF16), Granularity::Row), testing::HasSubstr("bf16 [64]"));
  EXPECT_THAT(cast(t.zeros({64}, DType::F32), Granularity::Block128x128), testing::HasSubstr("128x128"));
}

// Operands as a layer has them: numbers or rows of codes, and the input turned or not.
TEST(Fp8Layer, DwTakesOperandsAsTheyAre) {
  TestContext t(DType::BF16);
  const Fp8Recipe recipe{kRow, kRow, kRow, kTensor, kTensor};
  Context fp8 = t.ctx;
  fp8.fp8 = &recipe;
  const Tensor x = t.random({50, 64}), dy = t.random({50, 96});
  const Operand rows = to_fp8_rows(t.ctx, dy, DType::E4M3), xt = to_fp8_transposed(t.ctx, x, kTensor);
  const auto dw = [&](const Context& ctx, const Operand& a, const Operand& b) {
    const MainGrad grad = t.grad(96, 64);
    accumulate_dw(ctx, grad, a, b);
    return values(grad.data.plain());
  };
  const MainGrad by_hand = t.grad(96, 64);
  accumulate_dw(t.ctx, by_hand, to_fp8_transposed(t.ctx, rows, kTensor), xt, Accumulation::Fp32);
  const Values want = values(by_hand.data.plain());
  EXPECT_EQ(dw(fp8, rows, xt), want);
  EXPECT_EQ(dw(fp8, rows, transposed(x)), want);
  EXPECT_EQ(dw(t.ctx, dy, transposed(x)), dw(t.ctx, Operand(dy), transposed(x)));
  // A dW in the compute type decodes what came as codes.
  Fp8Recipe numbers = recipe;
  numbers.dw_dy = numbers.dw_x = {DType::BF16, Granularity::None};
  fp8.fp8 = &numbers;
  EXPECT_EQ(dw(fp8, rows, transposed(x)), dw(t.ctx, to_numbers(t.ctx, rows), transposed(x)));
}

// Of Gaussian operands e4m3 rounds each number by 2.6%, so a product of two errs by 3.7%; with one in e5m2 by 5.9%.
TEST_P(Fp8Linear, ErrsAsItsFormatsDo) {
  const auto error = [](const Tensor& got, const Tensor& want) {
    double off = 0, size = 0;
    for (int64_t i = 0; i < want.count(); ++i)
      off += std::pow(get(got, i) - get(want, i), 2), size += std::pow(get(want, i), 2);
    return std::sqrt(off / size);
  };
  const double e4m3 = 0.037, gradient = GetParam().dy.dtype == DType::E5M2 ? 0.059 : e4m3;
  EXPECT_NEAR(error(linear(fp8, x, w), linear(t.ctx, x, w)), e4m3, 0.005);
  EXPECT_NEAR(error(linear_dx(fp8, dy, w), linear_dx(t.ctx, dy, w)), gradient, 0.005);
  accumulate_dw(fp8, grad, dy, x);
  const MainGrad exact = t.grad(90, 70);
  accumulate_dw(t.ctx, exact, dy, x);
  EXPECT_NEAR(error(grad.data.plain(), exact.data.plain()), gradient, 0.005);
}

TEST(Fp8Recipes, DwMayBeMadeInTheComputeType) {
  TestContext t{DType::BF16};
  const Tensor x = t.random({50, 70}), dy = t.random({50, 90});
  Fp8Recipe recipe{kRow, kRow, kRow, {DType::BF16, Granularity::None}, {DType::BF16, Granularity::None}};
  Context fp8 = t.ctx;
  fp8.fp8 = &recipe;
  const MainGrad grad = t.grad(90, 70), plain = t.grad(90, 70);
  accumulate_dw(fp8, grad, dy, x);
  accumulate_dw(t.ctx, plain, dy, x);
  EXPECT_EQ(values(grad.data.plain()), values(plain.data.plain()));
}

// A matrix that lies the other way is the same operand.
TEST_P(Fp8Linear, EitherMajorBecomesTheSameOperand) {
  const Tensor turned = t.zeros({70, 50});
  for (int64_t r = 0; r < 50; ++r)
    for (int64_t i = 0; i < 70; ++i) set(turned, i * 50 + r, get(x, r * 70 + i));
  EXPECT_EQ(values(linear(fp8, transposed(turned), w)), values(linear(fp8, x, w)));
}

TEST_P(Fp8Linear, GemmStaysInTheNumbersOwnType) {
  const Tensor c = t.zeros({50, 90}), d = t.zeros({50, 90});
  gemm(fp8, x, w, c);
  gemm(t.ctx, x, w, d);
  EXPECT_EQ(values(c), values(d));
}

}  // namespace
}  // namespace agoq::ops::test
