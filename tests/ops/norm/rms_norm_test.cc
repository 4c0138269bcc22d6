#include "ops/norm/rms_norm.h"

#include "ops/support.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

constexpr float kEps = 1e-5f;

struct Size {
  int64_t rows, cols;
};
const std::vector<Size> kSizes = {{1, 1}, {3, 5}, {7, 130}, {200, 96}};

double rstd_of(const double* x, int64_t n) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += x[i] * x[i];
  return 1 / std::sqrt(squares / static_cast<double>(n) + double{kEps});
}

Values reference_rstd(const Values& x, int64_t cols) {
  Values r;
  for (size_t first = 0; first < x.size(); first += static_cast<size_t>(cols)) r.push_back(rstd_of(&x[first], cols));
  return r;
}

// x · rstd · w with the weights repeating along a row.
Values scaled(const Values& x, const Values& rstd, const Values& w) {
  Values n(x.size());
  for (size_t i = 0; i < x.size(); ++i) n[i] = x[i] * rstd[i / w.size()] * w[i % w.size()];
  return n;
}

Values reference(const Values& x, const Values& w) {
  return scaled(x, reference_rstd(x, static_cast<int64_t>(w.size())), w);
}

// dx of a row by the matrix of derivatives ∂n_j/∂x_i = rstd·w_j·(δ_ij - x_i·x_j·rstd²/H), for a given rstd.
Values reference_dx(const Values& dn, const Values& x, const Values& rstd, const Values& w) {
  Values dx(x.size());
  const size_t cols = w.size();
  for (size_t first = 0; first < x.size(); first += cols) {
    const double r = rstd[first / cols];
    for (size_t i = 0; i < cols; ++i)
      for (size_t j = 0; j < cols; ++j)
        dx[first + i] += dn[first + j] * r * w[j] *
                         ((i == j ? 1.0 : 0.0) - x[first + i] * x[first + j] * r * r / static_cast<double>(cols));
  }
  return dx;
}

Values reference_dw(const Values& dn, const Values& x, const Values& rstd, size_t cols) {
  Values dw(cols);
  for (size_t i = 0; i < x.size(); ++i) dw[i % cols] += dn[i] * x[i] * rstd[i / cols];
  return dw;
}

class RmsNorm : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Compute, RmsNorm, testing::Values(DType::F32, DType::BF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(RmsNorm, MatchesTheReference) {
  for (const Size& s : kSizes)
    for (DType weight_type : {GetParam(), DType::F32}) {
      TestContext t(GetParam());
      const Tensor x = t.random({s.rows, s.cols}, 3), w = t.random({s.cols}, 1, weight_type);
      const Tensor rstd = t.zeros({s.rows}, DType::F32);
      const Tensor n = rms_norm(t.ctx, x, w, kEps, {}, rstd);
      expect_close_as(n, reference(values(x), values(w)));
      expect_close(rstd, reference_rstd(values(x), s.cols), 1e-6, 0);
    }
}

TEST(RmsNormForward, ZeroRowsStayZeroAndNanShows) {
  TestContext t;
  const Tensor x = t.zeros({2, 4}), w = t.random({4});
  set(x, 5, std::nan(""));
  const Tensor n = rms_norm(t.ctx, x, w, kEps);
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(get(n, i), 0);
    EXPECT_TRUE(std::isnan(get(n, 4 + i)));
  }
}

TEST_P(RmsNorm, AgainIsTheNormOfWhatWasKept) {
  for (Codec codec : {Codec::Fp4, Codec::Fp5, Codec::Int8, Codec::Bf16, Codec::Fp32})
    for (int64_t segment : {296, 37}) {
      TestContext t(GetParam());
      const int64_t rows = 11, cols = 296;
      const Tensor x = t.random({rows, cols}, 2), w = t.random({cols}), rstd = t.zeros({rows}, DType::F32);
      const auto kept = t.kept(codec, rows, RowBlocks(cols, segment));
      const Tensor n = rms_norm(t.ctx, x, w, kEps, kept, rstd);
      expect_close_as(n, reference(values(x), values(w)), 1, "forward stays exact");

      const auto plain = t.kept(codec, rows, kept.row);
      codec::encode(t.ctx, x, plain);
      EXPECT_EQ(std::memcmp(plain.codes.data, kept.codes.data, plain.codes.bytes()), 0);

      const Tensor again = recompute_rms_norm(t.ctx, kept, rstd, w);
      expect_close_as(again, scaled(values(t.decoded(kept)), values(rstd), values(w)));
      if (codec == Codec::Fp32 || (codec == Codec::Bf16 && GetParam() == DType::BF16)) {
        EXPECT_EQ(values(again), values(n));
      }
    }
}

TEST_P(RmsNorm, BackwardWorksOnWhatWasKept) {
  for (Codec codec : {Codec::Fp32, Codec::Fp4})
    for (const Size& s : kSizes)
      for (bool with_residual : {false, true}) {
        TestContext t(GetParam());
        const Tensor x = t.random({s.rows, s.cols}, 2), w = t.random({s.cols}), dn = t.random({s.rows, s.cols});
        const Tensor rstd = t.zeros({s.rows}, DType::F32);
        const Tensor residual = with_residual ? t.random({s.rows, s.cols}) : Tensor{};
        const auto kept = t.kept(codec, s.rows, RowBlocks(s.cols));
        const MainGrad dw = t.grad(1, s.cols);
        rms_norm(t.ctx, x, w, kEps, kept, rstd);
        const Tensor dx = rms_norm_backward(t.ctx, dn, kept, rstd, w, residual, dw);

        const Values decoded = values(t.decoded(kept)), r = values(rstd);
        Values want = reference_dx(values(dn), decoded, r, values(w));
        for (size_t i = 0; with_residual && i < want.size(); ++i) want[i] += get(residual, static_cast<int64_t>(i));
        expect_close_as(dx, want, 1, "dx", largest(values(dn)) * largest(values(w)) * largest(r));
        const Values want_dw = reference_dw(values(dn), decoded, r, static_cast<size_t>(s.cols));
        expect_close(dw.data.plain(), want_dw, 1e-5, 1e-6 * std::max(1.0, largest(want_dw)), "dw");
      }
}

TEST(RmsNormBackward, AgreesWithFiniteDifferences) {
  TestContext t;
  const int64_t rows = 3, cols = 7;
  const Tensor x = t.random({rows, cols}), w = t.random({cols}), dn = t.random({rows, cols});
  const Tensor rstd = t.zeros({rows}, DType::F32);
  const auto kept = t.kept(Codec::Fp32, rows, RowBlocks(cols));
  const MainGrad dw = t.grad(1, cols);
  rms_norm(t.ctx, x, w, kEps, kept, rstd);
  const Tensor dx = rms_norm_backward(t.ctx, dn, kept, rstd, w, {}, dw);
  const Values up = values(dn), x0 = values(x), w0 = values(w);
  expect_close(dx, numeric_gradient([&](const Values& v) { return dot(up, reference(v, w0)); }, x0), 1e-5, 1e-6);
  expect_close(dw.data.plain(), numeric_gradient([&](const Values& v) { return dot(up, reference(x0, v)); }, w0), 1e-5,
               1e-6);
}

TEST(RmsNormBackward, IndependentOfThreads) {
  const auto run = [](int threads) {
    return with_threads(threads, [] {
      TestContext t;
      const int64_t rows = 1001, cols = 72;
      const Tensor x = t.random({rows, cols}), w = t.random({cols}), dn = t.random({rows, cols});
      const Tensor rstd = t.zeros({rows}, DType::F32);
      const auto kept = t.kept(Codec::Fp4, rows, RowBlocks(cols));
      const MainGrad dw = t.grad(1, cols);
      const Values n = values(rms_norm(t.ctx, x, w, kEps, kept, rstd));
      const Values dx = values(rms_norm_backward(t.ctx, dn, kept, rstd, w, {}, dw));
      return std::vector<Values>{n, dx, values(dw.data.plain())};
    });
  };
  EXPECT_EQ(run(1), run(2));
}

TEST(RmsNormForward, RefusesWrongShapes) {
  TestContext t;
  const Tensor x = t.zeros({4, 8}), w = t.zeros({8}), rstd = t.zeros({4}, DType::F32);
  const auto kept = t.kept(Codec::Fp4, 4, RowBlocks(8));
  const MainGrad dw = t.grad(1, 8);
  EXPECT_THROW(rms_norm(t.ctx, x, t.zeros({7}), kEps), Error);
  EXPECT_THROW(rms_norm(t.ctx, t.zeros({4, 8}, DType::BF16), w, kEps), Error);
  EXPECT_THROW(rms_norm(t.ctx, x, w, kEps, t.kept(Codec::Fp4, 3, RowBlocks(8))), Error);
  EXPECT_THROW(rms_norm(t.ctx, x, w, kEps, kept, t.zeros({5}, DType::F32)), Error);
  EXPECT_THROW(recompute_rms_norm(t.ctx, {}, rstd, w), Error);
  EXPECT_THROW(recompute_rms_norm(t.ctx, kept, {}, w), Error);
  EXPECT_THROW(rms_norm_backward(t.ctx, x, kept, rstd, w, t.zeros({3, 8}), dw), Error);
  EXPECT_THROW(qk_norm(t.ctx, x, Heads{1, 1, 4}, t.zeros({4}), t.zeros({4}), kEps), Error);
}

// --- q and k norms ---

const Heads kHeads{3, 2, 6};

// Splits qkv into its heads and norms those of q and k one by one.
Values reference_qk(const Values& qkv, const Values& wq, const Values& wk) {
  Values out = qkv;
  const size_t cols = static_cast<size_t>(kHeads.cols()), dim = static_cast<size_t>(kHeads.dim);
  for (size_t first = 0; first < qkv.size(); first += dim) {
    const size_t head = first % cols / dim;
    if (head >= static_cast<size_t>(kHeads.query + kHeads.kv)) continue;
    const Values& w = head < static_cast<size_t>(kHeads.query) ? wq : wk;
    for (size_t i = 0; i < dim; ++i) out[first + i] = qkv[first + i] * rstd_of(&qkv[first], kHeads.dim) * w[i];
  }
  return out;
}

TEST_P(RmsNorm, QkNormMatchesTheReferenceAndRepeats) {
  TestContext t(GetParam());
  const Tensor qkv = t.random({70, kHeads.cols()}), wq = t.random({6}), wk = t.random({6});
  const Tensor rstd = t.zeros({70, 5}, DType::F32), copy = t.zeros(qkv.shape);
  std::memcpy(copy.data, qkv.data, qkv.bytes());
  const Values want = reference_qk(values(qkv), values(wq), values(wk));
  qk_norm(t.ctx, qkv, kHeads, wq, wk, kEps, rstd);
  expect_close_as(qkv, want);
  recompute_qk_norm(t.ctx, copy, kHeads, wq, wk, rstd);
  EXPECT_EQ(values(copy), values(qkv));
}

TEST(QkNormBackward, AgreesWithFiniteDifferences) {
  TestContext t;
  const int64_t rows = 2;
  const Tensor qkv = t.random({rows, kHeads.cols()}), wq = t.random({6}), wk = t.random({6});
  const Tensor before = t.zeros(qkv.shape), rstd = t.zeros({rows, 5}, DType::F32), d = t.random(qkv.shape);
  std::memcpy(before.data, qkv.data, qkv.bytes());
  const Values up = values(d), x0 = values(qkv), wq0 = values(wq), wk0 = values(wk);
  const MainGrad dwq = t.grad(1, 6), dwk = t.grad(1, 6);
  qk_norm(t.ctx, qkv, kHeads, wq, wk, kEps, rstd);
  qk_norm_backward(t.ctx, d, before, kHeads, wq, wk, rstd, dwq, dwk);
  const auto gradient = [&](const Values& at, auto&& forward) {
    return numeric_gradient([&](const Values& v) { return dot(up, forward(v)); }, at);
  };
  expect_close(d, gradient(x0, [&](const Values& v) { return reference_qk(v, wq0, wk0); }), 1e-5, 1e-6);
  expect_close(dwq.data.plain(), gradient(wq0, [&](const Values& v) { return reference_qk(x0, v, wk0); }), 1e-5, 1e-6);
  expect_close(dwk.data.plain(), gradient(wk0, [&](const Values& v) { return reference_qk(x0, wq0, v); }), 1e-5, 1e-6);
}

TEST_P(RmsNorm, QkNormBackwardOfManyRows) {
  TestContext t(GetParam());
  const int64_t rows = 150;
  const Tensor qkv = t.random({rows, kHeads.cols()}), wq = t.random({6}), wk = t.random({6});
  const Tensor before = t.zeros(qkv.shape), rstd = t.zeros({rows, 5}, DType::F32), d = t.random(qkv.shape);
  std::memcpy(before.data, qkv.data, qkv.bytes());
  const Values up = values(d), x = values(before);
  const MainGrad dwq = t.grad(1, 6), dwk = t.grad(1, 6);
  qk_norm(t.ctx, qkv, kHeads, wq, wk, kEps, rstd);
  qk_norm_backward(t.ctx, d, before, kHeads, wq, wk, rstd, dwq, dwk);
  Values want = up, want_dw[2] = {Values(6), Values(6)};
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row)
    for (size_t h = 0; h < 5; ++h) {
      const size_t first = row * static_cast<size_t>(kHeads.cols()) + h * 6;
      const auto head = [&](const Values& v) { return Values(&v[first], &v[first] + 6); };
      const Values r = {rstd_of(&x[first], 6)}, w = values(h < 3 ? wq : wk);
      const Values dx = reference_dx(head(up), head(x), r, w), dw = reference_dw(head(up), head(x), r, 6);
      std::copy(dx.begin(), dx.end(), want.begin() + static_cast<std::ptrdiff_t>(first));
      for (size_t i = 0; i < 6; ++i) want_dw[h < 3 ? 0 : 1][i] += dw[i];
    }
  expect_close_as(d, want);
  expect_close(dwq.data.plain(), want_dw[0], 1e-5, 1e-5);
  expect_close(dwk.data.plain(), want_dw[1], 1e-5, 1e-5);
}

TEST_P(RmsNorm, MetaCountsTheSameBytes) {
  expect_same_peak(GetParam(), [](TestContext& t) {
    const Tensor w = t.random({40}), rstd = t.zeros({100}, DType::F32);
    const auto kept = t.kept(Codec::Fp4, 100, RowBlocks(40));
    const Tensor n = rms_norm(t.ctx, t.random({100, 40}), w, kEps, kept, rstd);
    recompute_rms_norm(t.ctx, kept, rstd, w);
    rms_norm_backward(t.ctx, n, kept, rstd, w, n, t.grad(1, 40));
  });
  expect_same_peak(GetParam(), [](TestContext& t) {
    const Tensor qkv = t.random({9, kHeads.cols()}), wq = t.random({6}), wk = t.random({6});
    const Tensor rstd = t.zeros({9, 5}, DType::F32);
    qk_norm(t.ctx, qkv, kHeads, wq, wk, kEps, rstd);
    recompute_qk_norm(t.ctx, qkv, kHeads, wq, wk, rstd);
    qk_norm_backward(t.ctx, qkv, qkv, kHeads, wq, wk, rstd, t.grad(1, 6), t.grad(1, 6));
  });
}

}  // namespace
}  // namespace agoq::ops::test
