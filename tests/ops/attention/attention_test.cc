#include "ops/attention/attention.h"

#include "ops/support.h"

namespace agoq::ops {
namespace {

using test::TestContext;
using test::Values;

// What a case is made of: where each token's document starts, and the window.
struct Case {
  Heads heads;
  std::vector<int32_t> start;  // [T]
  int64_t window = 0;
  int64_t tokens() const { return static_cast<int64_t>(start.size()); }
  bool sees(int64_t t, int64_t j) const {
    return j <= t && j >= start[static_cast<size_t>(t)] && (window == 0 || t - j < window);
  }
  AttentionSpec spec() const { return {heads, window}; }
};

std::vector<int32_t> documents(std::initializer_list<int> lengths) {
  std::vector<int32_t> start;
  for (int n : lengths) start.insert(start.end(), static_cast<size_t>(n), static_cast<int32_t>(start.size()));
  return start;
}

struct Reference {
  Values o, lse, dqkv;
};

// The definition, in double, with all T² weights; the gradient by the chain rule if d_o is given.
Reference reference(const Case& c, const Values& qkv, const Values& d_o = {}) {
  const int64_t tokens = c.tokens(), d = c.heads.dim, cols = c.heads.cols(), q_cols = c.heads.q_cols();
  Reference r{Values(static_cast<size_t>(tokens * q_cols)), Values(static_cast<size_t>(tokens * c.heads.query)), {}};
  if (!d_o.empty()) r.dqkv.resize(qkv.size());
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  for (int64_t h = 0; h < c.heads.query; ++h) {
    const int64_t kv = h / (c.heads.query / c.heads.kv);
    const int64_t qc = h * d, kc = q_cols + kv * d, vc = q_cols + (c.heads.kv + kv) * d;
    const auto at = [&](int64_t t, int64_t column) { return static_cast<size_t>(t * cols + column); };
    for (int64_t t = 0; t < tokens; ++t) {
      Values p(static_cast<size_t>(tokens), 0.0);
      double most = -1e300, total = 0;
      const auto score = [&](int64_t j) {
        double s = 0;
        for (int64_t i = 0; i < d; ++i) s += qkv[at(t, qc + i)] * qkv[at(j, kc + i)];
        return s * scale;
      };
      for (int64_t j = 0; j < tokens; ++j)
        if (c.sees(t, j)) most = std::max(most, score(j));
      for (int64_t j = 0; j < tokens; ++j)
        if (c.sees(t, j)) total += p[static_cast<size_t>(j)] = std::exp(score(j) - most);
      r.lse[static_cast<size_t>(h * tokens + t)] = most + std::log(total);
      const auto o_at = static_cast<size_t>(t * q_cols + qc);
      for (int64_t j = 0; j < tokens; ++j) {
        p[static_cast<size_t>(j)] /= total;
        for (int64_t i = 0; i < d; ++i)
          r.o[o_at + static_cast<size_t>(i)] += p[static_cast<size_t>(j)] * qkv[at(j, vc + i)];
      }
      if (d_o.empty()) continue;
      const double* out = d_o.data() + o_at;
      double mean = 0;  // Σ p · dp
      Values dp(static_cast<size_t>(tokens), 0.0);
      for (int64_t j = 0; j < tokens; ++j) {
        for (int64_t i = 0; i < d; ++i) dp[static_cast<size_t>(j)] += out[i] * qkv[at(j, vc + i)];
        mean += p[static_cast<size_t>(j)] * dp[static_cast<size_t>(j)];
      }
      for (int64_t j = 0; j < tokens; ++j) {
        const double pj = p[static_cast<size_t>(j)], ds = pj * (dp[static_cast<size_t>(j)] - mean) * scale;
        for (int64_t i = 0; i < d; ++i) {
          r.dqkv[at(j, vc + i)] += pj * out[i];
          r.dqkv[at(t, qc + i)] += ds * qkv[at(j, kc + i)];
          r.dqkv[at(j, kc + i)] += ds * qkv[at(t, qc + i)];
        }
      }
    }
  }
  return r;
}

struct Results {
  Tensor o, lse, dqkv;
};

Results run(TestContext& t, const Case& c, const Tensor& qkv, const Tensor& d_o) {
  t.ctx.document_start = t.zeros({c.tokens()}, DType::I32);
  for (int64_t i = 0; qkv.data && i < c.tokens(); ++i)
    t.ctx.document_start.as<int32_t>()[i] = c.start[static_cast<size_t>(i)];
  Results r;
  r.lse = t.zeros({c.heads.query, c.tokens()}, DType::F32);
  r.o = attention(t.ctx, qkv, c.spec(), r.lse);
  r.dqkv = attention_backward(t.ctx, d_o, qkv, r.o, r.lse, c.spec());
  return r;
}

// `size` of the entries of qkv: scores have size², and an error of fp32 in proportion, which exp hands on to the
// weights.
void compare(const Case& c, double size = 1) {
  TestContext t;
  const Tensor qkv = t.random({c.tokens(), c.heads.cols()}, size);
  const Tensor d_o = t.random({c.tokens(), c.heads.q_cols()});
  const Results got = run(t, c, qkv, d_o);
  const Reference want = reference(c, test::values(qkv), test::values(d_o));
  const double error = 2e-6 * size * size;
  test::expect_close(got.o, want.o, error, error * size, "o");
  test::expect_close(got.lse, want.lse, 1e-6, error, "lse");
  test::expect_close(got.dqkv, want.dqkv, error, 2 * error * test::largest(want.dqkv), "dqkv");
}

TEST(Attention, GroupedQueriesOverSeveralTilesWithAnOddLength) {
  compare({{6, 2, 12}, documents({203})});
}
TEST(Attention, OneKeyHeadForAll) {
  compare({{5, 1, 20}, documents({131})});
}
TEST(Attention, AsManyKeyHeadsAsQueries) {
  compare({{3, 3, 32}, documents({97, 96})});
}
TEST(Attention, PackedDocumentsOfAllLengths) {
  compare({{4, 2, 16}, documents({1, 70, 2, 64, 1, 1, 129})});
}
TEST(Attention, SlidingWindow) {
  compare({{4, 2, 8}, documents({190}), 37});
}
TEST(Attention, SlidingWindowAcrossDocuments) {
  compare({{4, 4, 8}, documents({50, 120, 7}), 65});
}
TEST(Attention, WindowOfOneIsTheValueItself) {
  compare({{2, 1, 8}, documents({70}), 1});
}
TEST(Attention, OneToken) {
  compare({{2, 2, 40}, documents({1})});
}
TEST(Attention, MoreQueryHeadsThanTileRows) {
  compare({{71, 1, 4}, documents({19})});
}
TEST(Attention, LargeScores) {
  compare({{2, 1, 16}, documents({100})}, 8);
}

TEST(Attention, ReferenceGradientIsThatOfFiniteDifferences) {
  const Case c{{4, 2, 3}, documents({5, 2}), 4};
  TestContext t;
  const Values qkv = test::values(t.random({c.tokens(), c.heads.cols()}));
  const Values d_o = test::values(t.random({c.tokens(), c.heads.q_cols()}));
  const auto loss = [&](const Values& x) { return test::dot(reference(c, x).o, d_o); };
  test::expect_close(reference(c, qkv, d_o).dqkv, test::numeric_gradient(loss, qkv), 1e-6, 1e-7);
}

TEST(Attention, Bf16RoundsOnlyWhatItStores) {
  const Case c{{6, 2, 24}, documents({60, 83})};
  TestContext t(DType::BF16);
  const Tensor qkv = t.random({c.tokens(), c.heads.cols()}), d_o = t.random({c.tokens(), c.heads.q_cols()});
  const Results got = run(t, c, qkv, d_o);
  const Reference want = reference(c, test::values(qkv), test::values(d_o));
  test::expect_close(got.o, want.o, 0x1p-8, 1e-5, "o");  // one rounding
  // Backward reads the rounded o: delta is off by 2^-9 |do| |o|, a few percent of that in each of dq, dk.
  test::expect_close(got.dqkv, want.dqkv, 0x1p-8, 0x1p-8 * test::largest(want.dqkv), "dqkv");
}

TEST(Attention, TokensNeverSeeOtherDocuments) {
  const Case c{{2, 1, 8}, documents({40, 50})};
  TestContext t;
  const Tensor qkv = t.random({90, c.heads.cols()}), d_o = t.random({90, c.heads.q_cols()});
  const Results before = run(t, c, qkv, d_o);
  const Values o = test::values(before.o.row_range(40, 90)), d = test::values(before.dqkv.row_range(40, 90));
  for (int64_t i = 0; i < 40 * c.heads.cols(); ++i) qkv.as<float>()[i] *= -3;
  const Results after = run(t, c, qkv, d_o);
  EXPECT_EQ(test::values(after.o.row_range(40, 90)), o);
  EXPECT_EQ(test::values(after.dqkv.row_range(40, 90)), d);
}

TEST(Attention, DamageIsNotHidden) {
  const Case c{{2, 1, 8}, documents({9})};
  TestContext t;
  const Tensor qkv = t.random({9, c.heads.cols()}), d_o = t.random({9, c.heads.q_cols()});
  qkv.as<float>()[c.heads.k_begin()] = std::nanf("");  // the first key, seen by all
  const Results got = run(t, c, qkv, d_o);
  for (double x : test::values(got.o)) EXPECT_TRUE(std::isnan(x));
}

TEST(Attention, SameBitsUnderAnyNumberOfThreads) {
  const Case c{{6, 3, 16}, documents({100, 30, 90})};
  const auto bits = [&](int threads) {
    return test::with_threads(threads, [&] {
      TestContext t;
      const Tensor qkv = t.random({c.tokens(), c.heads.cols()}), d_o = t.random({c.tokens(), c.heads.q_cols()});
      const Results r = run(t, c, qkv, d_o);
      return std::array{test::values(r.o), test::values(r.lse), test::values(r.dqkv)};
    });
  };
  EXPECT_EQ(bits(1), bits(2));
  EXPECT_EQ(bits(1), bits(3));
}

TEST(Attention, DryRunCountsTheSameBytes) {
  const Case c{{6, 2, 20}, documents({33, 44})};
  for (DType compute : {DType::F32, DType::BF16})
    test::expect_same_peak(compute, [&](TestContext& t) {
      const Tensor qkv = t.random({c.tokens(), c.heads.cols()}), d_o = t.random({c.tokens(), c.heads.q_cols()});
      run(t, c, qkv, d_o);
    });
}

TEST(Attention, RefusesShapesThatDoNotFit) {
  TestContext t;
  t.ctx.document_start = t.zeros({4}, DType::I32);
  const AttentionSpec spec{{4, 2, 8}};
  EXPECT_THROW(attention(t.ctx, t.zeros({4, 63}), spec), Error);
  EXPECT_THROW(attention(t.ctx, t.zeros({5, 64}), spec), Error);
  EXPECT_THROW(attention(t.ctx, t.zeros({4, 64}, DType::BF16), spec), Error);
  EXPECT_THROW(attention(t.ctx, t.zeros({4, 64}), {{3, 2, 8}}), Error);
  EXPECT_THROW(attention(t.ctx, t.zeros({4, 64}), spec, t.zeros({4, 3}, DType::F32)), Error);
  EXPECT_NO_THROW(attention(t.ctx, t.zeros({4, 64}), spec));
}

}  // namespace
}  // namespace agoq::ops
