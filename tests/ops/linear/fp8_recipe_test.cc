// A context with an Fp8Recipe: the products of a linear layer are those of operands made by hand.
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
                                         Fp8Recipe{kTokens, kWeight, kTokens, kTokens, kTokens}, kMixed));

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
