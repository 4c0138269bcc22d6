// Scales that are known before: the rule, the history, and casts with them.
#include "ops/linear/delayed_scale.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/error_of.h"
#include "codec/formats.h"
#include "ops/gradient/accumulate.h"
#include "ops/linear/fp8.h"
#include "ops/linear/linear.h"
#include "ops/support.h"

namespace agoq::ops::test {
namespace {

using testing::HasSubstr;

constexpr double kInf = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();
constexpr OperandFormat kE4M3{DType::E4M3, Granularity::Tensor}, kE5M2{DType::E5M2, Granularity::Tensor};

// The history of x, w and dy of one product, which steps of chosen amaxes fill.
struct Histories {
  explicit Histories(const DelayedScaling& scaling) : how(scaling) {
    history = {t.zeros({3, how.history}), t.zeros(scales_shape(3))};
  }
  // Of each rank the amaxes of x, w and dy.
  void step(const std::vector<Values>& ranks, bool remember = true) {
    const Tensor amaxes = t.zeros({static_cast<int64_t>(ranks.size()), 3});
    for (size_t i = 0; i < 3 * ranks.size(); ++i) set(amaxes, static_cast<int64_t>(i), ranks[i / 3][i % 3]);
    make_scales(t.ctx, amaxes, remember, how, {DType::E4M3, DType::E4M3, DType::E5M2}, history);
  }
  Values scales() { return {get(history.scales, 0), get(history.scales, 4), get(history.scales, 8)}; }
  Values of_x() { return values(history.amaxes.row_range(0, 1)); }

  TestContext t;
  DelayedScaling how;
  ScaleHistory history;
};

TEST(DelayedScale, IsTheLeastPowerOfTwoUnderWhichTheAmaxFits) {
  Histories h({4, false, 0});
  EXPECT_EQ(h.scales(), (Values{0, 0, 0})) << "none is known";
  h.step({{448, 449, 57344}});
  EXPECT_EQ(h.scales(), (Values{1, 2, 1}));
  h.step({{1e-3, 1e30, 57345}});
  EXPECT_EQ(h.scales(), (Values{1, std::exp2(91), 2})) << "the largest of the history";
}

TEST(DelayedScale, LeavesTheMarginAsRoom) {
  Histories h({1, true, 3});
  h.step({{448, 3, 3.4e38}});
  EXPECT_EQ(h.scales()[0], 8);
  EXPECT_EQ(h.scales()[1], 1.0 / 16) << "24 / 448 is above 2^-5";
  EXPECT_TRUE(std::isfinite(h.scales()[2]));
}

TEST(DelayedScale, FollowsTheLargestOfTheHistoryOrTheLastStep) {
  Histories largest({3, false, 0}), last({3, true, 0});
  for (const double amax : {900.0, 100.0, 400.0, 10.0}) {
    largest.step({{amax, 1, 1}});
    last.step({{amax, 1, 1}});
  }
  EXPECT_EQ(largest.of_x(), (Values{10, 400, 100})) << "the newest first; 900 is forgotten";
  EXPECT_EQ(largest.scales()[0], 1);
  EXPECT_EQ(last.scales()[0], 1.0 / 32);
}

TEST(DelayedScale, TakesTheLargestOfTheRanks) {
  Histories h({2, false, 0});
  h.step({{1, 5, 2}, {3, 4, kNan}});
  EXPECT_EQ(h.of_x(), (Values{3, 0}));
  EXPECT_EQ(get(h.history.amaxes, 2), 5);
  EXPECT_EQ(get(h.history.amaxes, 4), 0) << "one rank saw a NaN";
}

TEST(DelayedScale, RemembersNeitherZeroNorWhatIsNotFinite) {
  Histories h({2, true, 0});
  h.step({{448, 1, 1}});
  for (const double amax : {0.0, kInf, kNan}) h.step({{amax, 1, 1}});
  EXPECT_EQ(h.of_x(), (Values{448, 0}));
  EXPECT_EQ(h.scales()[0], 1);
  h.step({{7, 7, 7}}, /*remember=*/false);
  EXPECT_EQ(h.of_x(), (Values{448, 0})) << "a step that is skipped";
}

TEST(DelayedScale, RefusesWhatDoesNotFit) {
  Histories h({2, true, 0});
  h.how.history = 3;
  EXPECT_THAT(error_of([&] { h.step({{1, 1, 1}}); }), HasSubstr("make_scales"));
}

// A site with a scale that is known, or none.
struct Site : testing::Test {
  TestContext t{DType::BF16};
  ScaleSite site{t.zeros({1}, DType::F32), t.zeros({1}, DType::F32), true};
  Tensor x = t.random({50, 72});
};

TEST_F(Site, CastsWithItsScaleAndSaturates) {
  set(site.scale, 0, 1.0 / 256);  // up to 1.75 in e4m3
  for (const OperandFormat format : {kE4M3, kE5M2})
    for (const bool turned : {false, true}) {
      const Operand out = to_fp8(t.ctx, turned ? transposed(x) : Operand(x), format, site);
      EXPECT_EQ(out.scale.data, site.scale.data);
      ASSERT_EQ(out.data.shape, turned ? (Shape{72, 64}) : (Shape{50, 80})) << "padded";
      const double most = format == kE4M3 ? 448 : 57344;
      for (int64_t row = 0; row < out.rows(); ++row)
        for (int64_t i = 0; i < out.k(); ++i) {
          const uint32_t code = out.data.raw()[row * out.k() + i];
          const double number = format == kE4M3 ? codec::OperandE4M3::decode(code) : codec::OperandE5M2::decode(code);
          const bool there = i < (turned ? 50 : 72);
          const double exact = there ? 256 * get(x, turned ? i * 72 + row : row * 72 + i) : 0;
          ASSERT_NEAR(number, std::clamp(exact, -most, most), std::abs(exact) / 8 + 0x1p-10) << row << ' ' << i;
        }
    }
  EXPECT_EQ(get(site.amax, 0), largest(values(x))) << "of the numbers, not of what they became";
}

TEST_F(Site, KeepsTheLargestAmaxOfItsCasts) {
  set(site.scale, 0, 1);
  set(site.amax, 0, 100);
  to_fp8(t.ctx, x, kE4M3, site);
  EXPECT_EQ(get(site.amax, 0), 100);
  set(x, 17, -300);
  to_fp8(t.ctx, transposed(x), kE4M3, site);
  EXPECT_EQ(get(site.amax, 0), 300);
}

TEST_F(Site, FindsTheScaleInTheNumbersWhereNoneIsKnown) {
  site.known = false;
  const Operand out = to_fp8(t.ctx, x, kE4M3, site), present = to_fp8(t.ctx, x, kE4M3);
  EXPECT_EQ(get(out.scale, 0), get(present.scale, 0));
  EXPECT_EQ(0, std::memcmp(out.data.raw(), present.data.raw(), out.data.bytes()));
  EXPECT_EQ(get(site.amax, 0), largest(values(x)));
}

// Damage is not saturated away: the product of the whole tensor shows it.
TEST_F(Site, ShowsANumberThatIsNotFinite) {
  for (const double bad : {kInf, -kInf, kNan})
    for (const bool turned : {false, true}) {
      set(site.scale, 0, 1), set(site.amax, 0, 0), set(x, 1000, bad);
      const Operand out = to_fp8(t.ctx, turned ? transposed(x) : Operand(x), kE4M3, site);
      EXPECT_TRUE(std::isnan(get(out.scale, 0))) << bad;
      EXPECT_FALSE(std::isfinite(get(site.amax, 0))) << bad;
    }
}

// The products of a linear layer are those of operands made by hand, each with the scale of its site.
TEST(DelayedProducts, TakeTheScalesOfTheWeight) {
  TestContext t(DType::BF16);
  Fp8Recipe recipe{kE4M3, kE4M3, kE5M2, kE5M2, kE4M3};
  recipe.delayed = DelayedScaling{};
  Context fp8 = t.ctx;
  fp8.fp8 = &recipe;
  const auto site = [&](double scale) {
    return ScaleSite{t.filled(
                         {1}, [=](int64_t) { return scale; }, DType::F32),
                     t.zeros({1}, DType::F32), true};
  };
  const ScaleSites sites{site(1.0 / 64), site(1.0 / 1024), site(1.0 / 4096)};
  const Tensor x = t.random({64, 80}), w = t.random({96, 80}, 0.1), dy = t.random({64, 96});
  LinearWeight weight = w;
  EXPECT_THAT(error_of([&] { linear(fp8, x, weight); }), HasSubstr("does not know whose"));
  weight.sites = &sites;
  EXPECT_EQ(values(linear(fp8, x, weight)),
            values(linear(t.ctx, to_fp8(t.ctx, x, kE4M3, sites.x), to_fp8(t.ctx, w, kE4M3, sites.w))));
  EXPECT_EQ(values(linear_dx(fp8, dy, weight)),
            values(linear(t.ctx, to_fp8(t.ctx, dy, kE5M2, sites.dy), to_fp8(t.ctx, transposed(w), kE4M3, sites.w))));
  MainGrad grad = t.grad(96, 80), by_hand = t.grad(96, 80);
  grad.sites = &sites;
  accumulate_dw(fp8, grad, dy, x);
  accumulate_dw(fp8, grad, Operand(dy), transposed(x));
  for (int i = 0; i < 2; ++i)
    accumulate_dw(t.ctx, by_hand, to_fp8(t.ctx, transposed(dy), kE5M2, sites.dy),
                  to_fp8(t.ctx, transposed(x), kE4M3, sites.x), Accumulation::Fp32);
  EXPECT_EQ(values(grad.data.plain()), values(by_hand.data.plain()));
}

}  // namespace
}  // namespace agoq::ops::test
