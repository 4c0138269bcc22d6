#include "ops/linear/linear.h"

#include <gmock/gmock.h>

#include "base/error_of.h"
#include "ops/linear/linear_cuda.h"
#include "ops/support.h"

namespace agoq::ops::test {
namespace {

struct Dims {
  int64_t m, n, k;
};
const std::vector<Dims> kDims = {{1, 1, 1}, {3, 5, 7}, {64, 48, 130}, {33, 257, 19}};
const Dims kBeyondATile = {1030, 40, 2051};  // several bf16 tiles along m and k
const Dims kWide = {5, 2500, 40};            // and along n

// op(a)·op(b) in double.
Values product(const Tensor& a, bool ta, const Tensor& b, bool tb, const Dims& d) {
  const Values av = values(a), bv = values(b);
  Values c(static_cast<size_t>(d.m * d.n));
  for (int64_t i = 0; i < d.m; ++i)
    for (int64_t p = 0; p < d.k; ++p) {
      const double x = av[static_cast<size_t>(ta ? p * d.m + i : i * d.k + p)];
      for (int64_t j = 0; j < d.n; ++j)
        c[static_cast<size_t>(i * d.n + j)] += x * bv[static_cast<size_t>(tb ? j * d.k + p : p * d.n + j)];
    }
  return c;
}

class Linear : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Compute, Linear, testing::Values(DType::F32, DType::BF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(Linear, MatchesTheDoubleProduct) {
  std::vector<Dims> all = kDims;
  all.push_back(kBeyondATile);
  all.push_back(kWide);
  for (const Dims& d : all) {
    TestContext t(GetParam());
    const Tensor x = t.random({d.m, d.k}), w = t.random({d.n, d.k}, 0.1);
    const Tensor y = linear(t.ctx, x, w);
    EXPECT_EQ(y.shape, (Shape{d.m, d.n}));
    EXPECT_EQ(y.dtype, GetParam());
    expect_close_as(y, product(x, false, w, true, d));
  }
}

TEST_P(Linear, AddsBiasAndResidualBeforeTheOneRounding) {
  for (const Dims& d : {kDims[2], kBeyondATile}) {
    for (DType bias_type : {GetParam(), DType::F32}) {
      TestContext t(GetParam());
      const Tensor x = t.random({d.m, d.k}), w = t.random({d.n, d.k}, 0.1), residual = t.random({d.m, d.n});
      const Tensor bias = t.random({d.n}, 1, bias_type);
      const Values y = product(x, false, w, true, d);
      Values with_bias = y, with_residual = y, with_both = y;
      for (size_t i = 0; i < y.size(); ++i) {
        const double b = get(bias, static_cast<int64_t>(i) % d.n), r = get(residual, static_cast<int64_t>(i));
        with_bias[i] += b;
        with_residual[i] += r;
        with_both[i] += b + r;
      }
      expect_close_as(linear(t.ctx, x, w, bias), with_bias, 1, "bias");
      expect_close_as(linear(t.ctx, x, w, {}, residual), with_residual, 1, "residual");
      expect_close_as(linear(t.ctx, x, w, bias, residual), with_both, 1, "both");
    }
  }
}

TEST_P(Linear, GradientOfTheInput) {
  for (const Dims& d : kDims) {  // dx [m, k] from dy [m, n], w [n, k]
    TestContext t(GetParam());
    const Tensor dy = t.random({d.m, d.n}), w = t.random({d.n, d.k}, 0.1);
    const Tensor dx = linear_dx(t.ctx, dy, w);
    expect_close_as(dx, product(dy, false, w, false, {d.m, d.k, d.n}));
  }
}

TEST(LinearBackward, AgreesWithFiniteDifferences) {
  TestContext t;
  const Dims d{3, 4, 5};
  const Tensor x = t.random({d.m, d.k}), w = t.random({d.n, d.k}), dy = t.random({d.m, d.n});
  TestContext other(DType::F32);
  const Loss loss = [&](const Values& xs) {
    const Tensor moved = other.filled(
        {d.m, d.k}, [&](int64_t i) { return xs[static_cast<size_t>(i)]; }, DType::F32);
    return dot(values(dy), product(moved, false, w, true, d));
  };
  // The loss is linear: a large step is exact but for the rounding of the moved inputs to fp32.
  expect_close(linear_dx(t.ctx, dy, w), numeric_gradient(loss, values(x), 0.5), 1e-5, 1e-5);
}

TEST(Gemm, EveryTransposeAndTypeWithBeta) {
  for (const Dims& d : {kDims[1], kDims[2], kDims[3]})
    for (int types = 0; types < 8; ++types)
      for (int transposes = 0; transposes < 4; ++transposes)
        for (float beta : {0.0f, 1.0f, -0.5f}) {
          TestContext t;
          const auto type = [&](int bit) { return types >> bit & 1 ? DType::BF16 : DType::F32; };
          const bool ta = transposes & 1, tb = transposes & 2;
          const Tensor a = t.random(ta ? Shape{d.k, d.m} : Shape{d.m, d.k}, 1, type(0));
          const Tensor b = t.random(tb ? Shape{d.n, d.k} : Shape{d.k, d.n}, 1, type(1));
          const Tensor c = t.random({d.m, d.n}, 1, type(2));
          Values want = product(a, ta, b, tb, d);
          for (size_t i = 0; i < want.size(); ++i) want[i] += beta * get(c, static_cast<int64_t>(i));
          gemm(t.ctx, ta ? transposed(a) : a, tb ? b : transposed(b), c, beta);
          expect_close_as(c, want);
        }
}

TEST(Gemm, WithBetaZeroOldContentsDoNotMatter) {
  for (DType type : {DType::F32, DType::BF16}) {
    TestContext t(type);
    const Tensor a = t.random({3, 4}), b = t.random({4, 5});
    const Tensor c = t.filled(
        {3, 5}, [](int64_t) { return std::nan(""); }, type);
    gemm(t.ctx, a, transposed(b), c);
    expect_close_as(c, product(a, false, b, false, {3, 5, 4}));
  }
}

TEST(Gemm, CountsFloatingPointOperations) {
  TestContext t;
  Profile profile;
  t.ctx.profile = &profile;
  gemm(t.ctx, t.random({3, 4}), transposed(t.random({4, 5})), t.zeros({3, 5}));
  EXPECT_EQ(profile.gemm_flops, 2.0 * 3 * 4 * 5);
  EXPECT_GT(profile[Work::Gemm], 0.0);
}

TEST(Gemm, ShapeErrorsNameTheOpAndTheShapes) {
  TestContext t;
  EXPECT_THAT(error_of([&] {
                linear(t.ctx, t.zeros({2, 3}), t.zeros({5, 4}));
              }),
              testing::AllOf(testing::HasSubstr("linear"), testing::HasSubstr("[2, 3]"),
                             testing::HasSubstr("[5, 4] transposed")));
  EXPECT_THROW(linear(t.ctx, t.zeros({2, 3}), t.zeros({5, 3}), t.zeros({4})), Error);
  EXPECT_THROW(linear(t.ctx, t.zeros({2, 3}), t.zeros({5, 3}), {}, t.zeros({2, 4})), Error);
  EXPECT_THROW(linear(t.ctx, t.zeros({2, 3}), t.zeros({5, 3}, DType::I32)), Error);
  EXPECT_THROW(gemm(t.ctx, transposed(t.zeros({2, 3})), transposed(t.zeros({3, 4})), t.zeros({2, 4})), Error);
  EXPECT_THROW(linear_dx(t.ctx, t.zeros({2, 3, 1}), t.zeros({3, 4})), Error);
}

TEST(Gemm, MetaCountsTheSameBytes) {
  for (DType type : {DType::F32, DType::BF16})
    for (const Dims& d : {kDims[1], kBeyondATile})
      expect_same_peak(type, [&](TestContext& t) {
        const Tensor x = t.random({d.m, d.k}), w = t.random({d.n, d.k});
        const Tensor y = linear(t.ctx, x, w, t.random({d.n}), t.random({d.m, d.n}));
        linear_dx(t.ctx, y, w);
      });
}

TEST(Gemm, PlanningAnotherDeviceCountsNoScratchOfTheCpu) {
  Arena arena(Device::Meta, 0);
  const Context ctx(arena, Device::Cuda, DType::BF16);
  const Tensor x{nullptr, DType::BF16, Device::Meta, {512, 256}}, w{nullptr, DType::BF16, Device::Meta, {128, 256}};
  const Tensor y = linear(ctx, x, w);
  EXPECT_EQ(arena.peak_stack_bytes(), y.bytes() + static_cast<size_t>(cuda::kGemmWorkspace));
}

}  // namespace
}  // namespace agoq::ops::test
