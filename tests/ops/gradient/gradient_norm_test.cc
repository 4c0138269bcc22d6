#include "ops/gradient/gradient_norm.h"

#include "ops/support.h"

namespace agoq::ops {
namespace {

using codec::Codec;
using test::TestContext;
using test::Values;

TEST(SquaredNorms, SumSquaresOfWhatIsStored) {
  TestContext t;
  std::vector<GradientSum> grads;
  for (Codec codec : {Codec::Fp32, Codec::Bf16, Codec::Int8, Codec::Fp8}) {
    grads.push_back({t.kept(codec, 31, codec::RowBlocks(200, 100))});
    codec::encode(t.ctx, t.random({31, 200}, 0.1, DType::F32), grads.back().first);
  }
  const Tensor squares = t.zeros({4}, DType::F32);
  squared_norms(t.ctx, grads, squares);
  for (size_t i = 0; i < grads.size(); ++i) {
    const Values decoded = test::values(t.decoded(grads[i].first));
    const double want = test::dot(decoded, decoded);
    EXPECT_NEAR(test::get(squares, static_cast<int64_t>(i)), want, want * 1e-7);
  }
}

TEST(SquaredNorms, OfASumAreThoseOfItsNumbers) {
  constexpr int64_t kRows = 11, kPieceRows = 13, kCols = 200;
  for (Codec codec : {Codec::Fp32, Codec::Bf16, Codec::Int8, Codec::Fp8}) {
    TestContext t;
    const codec::Quantized storage = t.kept(codec, 4 * kPieceRows, codec::RowBlocks(kCols, 100));
    codec::encode(t.ctx, t.random({4 * kPieceRows, kCols}, 0.1, DType::F32), storage);
    const Values all = test::values(t.decoded(storage));
    double want = 0;
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < 4; ++j) sum += all[static_cast<size_t>(j * kPieceRows * kCols + i)];
      want += sum * sum;
    }
    const std::vector<GradientSum> g = {{storage.row_range(0, kRows), 4, kPieceRows}};
    const Tensor square = t.zeros({1}, DType::F32);
    squared_norms(t.ctx, g, square);
    EXPECT_NEAR(test::get(square, 0), want, want * 1e-6);
  }
}

TEST(SquaredNorms, SameBitsUnderAnyNumberOfThreadsAndNoDamageHidden) {
  TestContext t;
  const std::vector<GradientSum> g = {{t.kept(Codec::Fp8, 100, codec::RowBlocks(333))}};
  const Tensor x = t.random({100, 333}, 1, DType::F32), out = t.zeros({1}, DType::F32);
  const auto norm = [&](int threads) {
    codec::encode(t.ctx, x, g[0].first);
    return test::with_threads(threads, [&] { return squared_norms(t.ctx, g, out), test::get(out, 0); });
  };
  EXPECT_EQ(norm(1), norm(2));
  for (float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    x.as<float>()[777] = bad;
    EXPECT_FALSE(std::isfinite(norm(2)));
  }
}

TEST(SquaredNorms, RefuseAResultOfAnotherSize) {
  TestContext t;
  const std::vector<GradientSum> g = {{t.kept(Codec::Fp8, 10, codec::RowBlocks(33))}};
  EXPECT_THROW(squared_norms(t.ctx, g, t.zeros({2}, DType::F32)), Error);
}

TEST(SquaredNorms, DryRunCountsTheSameBytes) {
  test::expect_same_peak(DType::F32, [](TestContext& t) {
    const std::vector<GradientSum> g = {{t.kept(Codec::Int8, 10, codec::RowBlocks(33))},
                                        {t.kept(Codec::Int8, 50, codec::RowBlocks(33))}};
    squared_norms(t.ctx, g, t.zeros({2}, DType::F32));
  });
}

}  // namespace
}  // namespace agoq::ops
