#include "ops/norm/layer_norm.h"

#include "ops/support.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

constexpr float kEps = 1e-5f;

struct Size {
  int64_t rows, cols;
};
const std::vector<Size> kSizes = {{1, 2}, {3, 5}, {7, 130}, {200, 96}};

struct RowLayout {
  double mean, rstd;
};
RowLayout statistics(const double* x, int64_t n) {
  double mean = 0, squares = 0;
  for (int64_t i = 0; i < n; ++i) mean += x[i] / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, 1 / std::sqrt(squares / static_cast<double>(n) + double{kEps})};
}

// Rows normalised with their own mean, and with their own rstd or the given ones.
Values reference(const Values& x, int64_t cols, const Values& rstd = {}) {
  Values n(x.size());
  for (size_t first = 0, row = 0; first < x.size(); first += static_cast<size_t>(cols), ++row) {
    const RowLayout s = statistics(&x[first], cols);
    for (size_t i = first; i < first + static_cast<size_t>(cols); ++i)
      n[i] = (x[i] - s.mean) * (rstd.empty() ? s.rstd : rstd[row]);
  }
  return n;
}

class LayerNorm : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Compute, LayerNorm, testing::Values(DType::F32, DType::BF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

// Rows far from zero, too: x - mean loses what x is rounded to and no more.
TEST_P(LayerNorm, MatchesTheReference) {
  for (const Size& s : kSizes)
    for (const double offset : {0.0, 20.0}) {
      TestContext t(GetParam());
      const Tensor noise = t.random({s.rows, s.cols}, 3);
      const Tensor x = t.filled(
          noise.shape, [&](int64_t i) { return get(noise, i) + offset; }, GetParam());
      const Tensor rstd = t.zeros({s.rows}, DType::F32);
      const Tensor n = layer_norm(t.ctx, x, kEps, {}, rstd);
      expect_close_as(n, reference(values(x), s.cols), 1, "n", offset);
      for (int64_t row = 0; row < s.rows; ++row) {
        const double want = statistics(&values(x)[static_cast<size_t>(row * s.cols)], s.cols).rstd;
        EXPECT_NEAR(get(rstd, row), want, 1e-5 * want);
      }
    }
}

TEST(LayerNormForward, ConstantRowsBecomeZeroAndNanShows) {
  TestContext t;
  const Tensor x = t.filled(
      {2, 4}, [](int64_t i) { return i < 4 ? 7.0 : static_cast<double>(i); }, DType::F32);
  set(x, 5, std::nan(""));
  const Tensor n = layer_norm(t.ctx, x, kEps);
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(get(n, i), 0);
    EXPECT_TRUE(std::isnan(get(n, 4 + i)));
  }
}

TEST_P(LayerNorm, AgainIsTheNormOfWhatWasKept) {
  for (Codec codec : {Codec::Fp4, Codec::Fp5, Codec::Int8, Codec::Bf16, Codec::Fp32})
    for (int64_t segment : {296, 37}) {
      TestContext t(GetParam());
      const int64_t rows = 11, cols = 296;
      const Tensor x = t.random({rows, cols}, 2), rstd = t.zeros({rows}, DType::F32);
      const auto kept = t.kept(codec, rows, RowBlocks(cols, segment));
      const Tensor n = layer_norm(t.ctx, x, kEps, kept, rstd);
      expect_close_as(n, reference(values(x), cols), 1, "forward stays exact");
      const Tensor again = recompute_layer_norm(t.ctx, kept, rstd);
      expect_close_as(again, reference(values(t.decoded(kept)), cols, values(rstd)));
      if (codec == Codec::Fp32 || (codec == Codec::Bf16 && GetParam() == DType::BF16)) {
        EXPECT_EQ(values(again), values(n));
      }
    }
}

// Of a loss Σ c·n that is differentiated numerically.
TEST(LayerNormBackward, AgreesWithFiniteDifferences) {
  for (const Size& s : {Size{1, 2}, Size{2, 7}, Size{3, 33}}) {
    TestContext t;
    const Tensor x = t.random({s.rows, s.cols}, 2), dn = t.random({s.rows, s.cols});
    const Tensor residual = t.random({s.rows, s.cols}), rstd = t.zeros({s.rows}, DType::F32);
    const auto kept = t.kept(Codec::Fp32, s.rows, RowBlocks(s.cols));
    layer_norm(t.ctx, x, kEps, kept, rstd);
    const Tensor dx = t.zeros({s.rows, s.cols});
    layer_norm_backward_into(t.ctx, dn, kept, rstd, residual, dx);
    Values want = numeric_gradient([&](const Values& v) { return dot(values(dn), reference(v, s.cols)); }, values(x));
    for (size_t i = 0; i < want.size(); ++i) want[i] += values(residual)[i];
    expect_close(dx, want, 2e-5, 2e-5);
  }
}

// dx of a row by the matrix of derivatives ∂n_j/∂x_i = rstd·(δ_ij - 1/H - x̂_i·x̂_j/H), for a given rstd.
Values reference_dx(const Values& dn, const Values& x, const Values& rstd, int64_t cols) {
  const Values hat = reference(x, cols, rstd);
  Values dx(x.size());
  const auto n = static_cast<size_t>(cols);
  for (size_t first = 0; first < x.size(); first += n)
    for (size_t i = first; i < first + n; ++i)
      for (size_t j = first; j < first + n; ++j)
        dx[i] += dn[j] * rstd[first / n] * ((i == j ? 1.0 : 0.0) - (1 + hat[i] * hat[j]) / static_cast<double>(cols));
  return dx;
}

TEST_P(LayerNorm, BackwardWorksOnWhatWasKept) {
  for (Codec codec : {Codec::Fp32, Codec::Fp4})
    for (const Size& s : kSizes)
      for (bool with_residual : {false, true}) {
        TestContext t(GetParam());
        const Tensor x = t.random({s.rows, s.cols}, 2), dn = t.random({s.rows, s.cols});
        const Tensor rstd = t.zeros({s.rows}, DType::F32);
        const Tensor residual = with_residual ? t.random({s.rows, s.cols}) : Tensor{};
        const auto kept = t.kept(codec, s.rows, RowBlocks(s.cols));
        layer_norm(t.ctx, x, kEps, kept, rstd);
        Values want = reference_dx(values(dn), values(t.decoded(kept)), values(rstd), s.cols);
        for (size_t i = 0; with_residual && i < want.size(); ++i) want[i] += get(residual, static_cast<int64_t>(i));
        const Tensor dx = with_residual ? residual : t.zeros({s.rows, s.cols});  // in place
        layer_norm_backward_into(t.ctx, dn, kept, rstd, residual, dx);
        expect_close_as(dx, want, 1, "dx", largest(values(rstd)) * largest(values(dn)));
      }
}

TEST(LayerNormThreads, AnyNumberGivesTheSameBits) {
  const auto run = [](int threads) {
    return with_threads(threads, [] {
      TestContext t;
      const Tensor x = t.random({37, 100}), dn = t.random({37, 100}), rstd = t.zeros({37}, DType::F32);
      const auto kept = t.kept(Codec::Fp4, 37, RowBlocks(100));
      Values all = values(layer_norm(t.ctx, x, kEps, kept, rstd));
      layer_norm_backward_into(t.ctx, dn, kept, rstd, {}, x);
      for (const double v : values(x)) all.push_back(v);
      return all;
    });
  };
  EXPECT_EQ(run(1), run(3));
}

TEST_P(LayerNorm, PlansItsPeak) {
  expect_same_peak(GetParam(), [](TestContext& t) {
    const Tensor x = t.random({9, 200}), rstd = t.zeros({9}, DType::F32);
    const auto kept = t.kept(Codec::Fp4, 9, RowBlocks(200));
    Scope scope(t.ctx);
    const Tensor n = layer_norm(t.ctx, x, kEps, kept, rstd);
    recompute_layer_norm(t.ctx, kept, rstd);
    layer_norm_backward_into(t.ctx, n, kept, rstd, x, x);
  });
}

TEST(LayerNormChecks, WrongShapesAreRefused) {
  TestContext t;
  const Tensor x = t.random({4, 8}), rstd = t.zeros({4}, DType::F32);
  const auto kept = t.kept(Codec::Fp32, 4, RowBlocks(8));
  EXPECT_THROW(layer_norm(t.ctx, x, kEps, t.kept(Codec::Fp32, 4, RowBlocks(9)), rstd), Error);
  EXPECT_THROW(layer_norm(t.ctx, x, kEps, kept, t.zeros({5}, DType::F32)), Error);
  EXPECT_THROW(recompute_layer_norm(t.ctx, {}, rstd), Error);
  EXPECT_THROW(layer_norm_backward_into(t.ctx, x, kept, rstd, t.zeros({3, 8}), x), Error);
  EXPECT_THROW(layer_norm_backward_into(t.ctx, x, kept, rstd, {}, t.zeros({3, 8})), Error);
}

}  // namespace
}  // namespace agoq::ops::test
