#include "ops/norm/wide_qk_norm.h"

#include <array>

#include "comm/process_group.h"
#include "comm/thread_transport.h"
#include "ops/support.h"

namespace agoq::ops::test {
namespace {

constexpr float kEps = 1e-5f;
const Heads kHeads{4, 2, 6};

// q and k of a row, each normalised as one.
struct Span {
  size_t begin, count;
};
std::array<Span, 2> spans(const Heads& heads) {
  return {{{0, static_cast<size_t>(heads.q_cols())},
           {static_cast<size_t>(heads.k_begin()), static_cast<size_t>(heads.kv_cols())}}};
}

// Straight from the formula: n = x / sqrt(mean(x²) + eps) · w.
Values reference(const Values& qkv, const Values& wq, const Values& wk) {
  Values out = qkv;
  const auto cols = static_cast<size_t>(kHeads.cols());
  for (size_t row = 0; row < qkv.size(); row += cols)
    for (const Span& span : spans(kHeads)) {
      const double* x = &qkv[row + span.begin];
      double squares = 0;
      for (size_t i = 0; i < span.count; ++i) squares += x[i] * x[i];
      const double rstd = 1 / std::sqrt(squares / static_cast<double>(span.count) + double{kEps});
      const Values& w = span.begin == 0 ? wq : wk;
      for (size_t i = 0; i < span.count; ++i) out[row + span.begin + i] = x[i] * rstd * w[i];
    }
  return out;
}

struct Operands {
  explicit Operands(TestContext& t, int64_t tokens)
      : rows(tokens),
        qkv(t.random({rows, kHeads.cols()}, 2)),
        before(t.zeros(qkv.shape)),
        d(t.random(qkv.shape)),
        wq(t.random({kHeads.q_cols()})),
        wk(t.random({kHeads.kv_cols()})),
        rstd(t.zeros({rows, 2}, DType::F32)),
        dwq(t.grad(1, kHeads.q_cols())),
        dwk(t.grad(1, kHeads.kv_cols())) {
    if (qkv.data) std::memcpy(before.data, qkv.data, qkv.bytes());
  }
  int64_t rows;
  Tensor qkv, before, d, wq, wk, rstd;
  MainGrad dwq, dwk;
};

class WideQkNorm : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Compute, WideQkNorm, testing::Values(DType::F32, DType::BF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(WideQkNorm, MatchesTheReferenceAndRepeats) {
  TestContext t(GetParam());
  const Operands o(t, 70);
  const Values want = reference(values(o.before), values(o.wq), values(o.wk));
  wide_qk_norm(t.ctx, o.qkv, kHeads, o.wq, o.wk, kEps, o.rstd);
  expect_close_as(o.qkv, want);
  recompute_wide_qk_norm(t.ctx, o.before, kHeads, o.wq, o.wk, o.rstd);
  EXPECT_EQ(values(o.before), values(o.qkv));
}

TEST(WideQkNormBackward, AgreesWithFiniteDifferences) {
  TestContext t;
  const Operands o(t, 2);
  const Values up = values(o.d), x0 = values(o.before), wq0 = values(o.wq), wk0 = values(o.wk);
  wide_qk_norm(t.ctx, o.qkv, kHeads, o.wq, o.wk, kEps, o.rstd);
  wide_qk_norm_backward(t.ctx, o.d, o.before, kHeads, o.wq, o.wk, o.rstd, o.dwq, o.dwk);
  const auto gradient = [&](const Values& at, auto&& forward) {
    return numeric_gradient([&](const Values& v) { return dot(up, forward(v)); }, at);
  };
  expect_close(o.d, gradient(x0, [&](const Values& v) { return reference(v, wq0, wk0); }), 1e-5, 1e-6);
  expect_close(o.dwq.data.plain(), gradient(wq0, [&](const Values& v) { return reference(x0, v, wk0); }), 1e-5, 1e-6);
  expect_close(o.dwk.data.plain(), gradient(wk0, [&](const Values& v) { return reference(x0, wq0, v); }), 1e-5, 1e-6);
}

// dx_i = rstd·(g_i - x_i·rstd²·Σ g·x / n) with g = dn·w, and dw_i = Σ dn_i·x_i·rstd, over more rows than slices.
TEST_P(WideQkNorm, BackwardOfManyRows) {
  TestContext t(GetParam());
  const Operands o(t, 150);
  const Values up = values(o.d), x = values(o.before), wq = values(o.wq), wk = values(o.wk);
  wide_qk_norm(t.ctx, o.qkv, kHeads, o.wq, o.wk, kEps, o.rstd);
  wide_qk_norm_backward(t.ctx, o.d, o.before, kHeads, o.wq, o.wk, o.rstd, o.dwq, o.dwk);
  Values want = up;
  std::array<Values, 2> want_dw = {Values(wq.size()), Values(wk.size())};
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(kHeads.cols()))
    for (size_t s = 0; s < 2; ++s) {
      const Span span = spans(kHeads)[s];
      const Values& w = s == 0 ? wq : wk;
      const double* at = &x[row + span.begin];
      double squares = 0, products = 0;
      for (size_t i = 0; i < span.count; ++i)
        squares += at[i] * at[i], products += up[row + span.begin + i] * w[i] * at[i];
      const double n = static_cast<double>(span.count), r = 1 / std::sqrt(squares / n + double{kEps});
      for (size_t i = 0; i < span.count; ++i) {
        want[row + span.begin + i] = r * (up[row + span.begin + i] * w[i] - at[i] * r * r * products / n);
        want_dw[s][i] += up[row + span.begin + i] * at[i] * r;
      }
    }
  expect_close_as(o.d, want);
  expect_close(o.dwq.data.plain(), want_dw[0], 1e-5, 1e-5);
  expect_close(o.dwk.data.plain(), want_dw[1], 1e-5, 1e-5);
}

TEST(WideQkNormBackward, IndependentOfThreads) {
  const auto run = [](int threads) {
    return with_threads(threads, [] {
      TestContext t;
      const Operands o(t, 1001);
      wide_qk_norm(t.ctx, o.qkv, kHeads, o.wq, o.wk, kEps, o.rstd);
      wide_qk_norm_backward(t.ctx, o.d, o.before, kHeads, o.wq, o.wk, o.rstd, o.dwq, o.dwk);
      return std::vector<Values>{values(o.qkv), values(o.d), values(o.dwq.data.plain()), values(o.dwk.data.plain())};
    });
  };
  EXPECT_EQ(run(1), run(2));
}

// Columns of the heads that rank `rank` of 2 has, of a row of q|k|v.
Values part_of_row(const Values& all, int64_t rows, const Heads& own, int rank) {
  Values part;
  const auto cols = static_cast<size_t>(kHeads.cols());
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row)
    for (const auto& [begin, count] :
         {std::pair{int64_t{0}, own.q_cols()}, {kHeads.k_begin(), own.kv_cols()}, {kHeads.v_begin(), own.kv_cols()}}) {
      const double* first = &all[row * cols + static_cast<size_t>(begin + rank * count)];
      part.insert(part.end(), first, first + count);
    }
  return part;
}
Values half(const Values& all, int rank) {
  const auto middle = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
  return rank == 0 ? Values(all.begin(), middle) : Values(middle, all.end());
}

// Each of two ranks has half of the heads and gets what one rank gets for them.
TEST(WideQkNormOfRanks, HeadsOfAllRanksAreNormalisedTogether) {
  constexpr int kRanks = 2;
  constexpr int64_t kRows = 9;
  TestContext one;
  const Operands o(one, kRows);
  const Values x = values(o.before), up = values(o.d), wq = values(o.wq), wk = values(o.wk);
  wide_qk_norm(one.ctx, o.qkv, kHeads, o.wq, o.wk, kEps, o.rstd);
  wide_qk_norm_backward(one.ctx, o.d, o.before, kHeads, o.wq, o.wk, o.rstd, o.dwq, o.dwk);
  const Heads own{kHeads.query / kRanks, kHeads.kv / kRanks, kHeads.dim};
  agoq::test::ThreadWorld(kRanks).run([&](comm::Transport& transport) {
    const int rank = transport.rank();
    const comm::ProcessGroup group(transport, {0, 1}, 0);
    TestContext t;
    t.ctx.tensor = &group;
    const auto tensor = [&](Shape shape, const Values& of) {
      return t.filled(
          shape, [&](int64_t i) { return of[static_cast<size_t>(i)]; }, DType::F32);
    };
    const Shape shape = {kRows, own.cols()};
    const Tensor qkv = tensor(shape, part_of_row(x, kRows, own, rank)), before = tensor(shape, values(qkv));
    const Tensor d = tensor(shape, part_of_row(up, kRows, own, rank)), rstd = t.zeros({kRows, 2}, DType::F32);
    const Tensor own_wq = tensor({own.q_cols()}, half(wq, rank)), own_wk = tensor({own.kv_cols()}, half(wk, rank));
    const MainGrad dwq = t.grad(1, own.q_cols()), dwk = t.grad(1, own.kv_cols());
    wide_qk_norm(t.ctx, qkv, own, own_wq, own_wk, kEps, rstd);
    wide_qk_norm_backward(t.ctx, d, before, own, own_wq, own_wk, rstd, dwq, dwk);
    expect_close(qkv, part_of_row(values(o.qkv), kRows, own, rank), 1e-5, 1e-6, "qkv");
    expect_close(rstd, values(o.rstd), 1e-6, 0, "rstd");
    expect_close(d, part_of_row(values(o.d), kRows, own, rank), 1e-5, 1e-6, "dqkv");
    expect_close(dwq.data.plain(), half(values(o.dwq.data.plain()), rank), 1e-5, 1e-6, "dwq");
    expect_close(dwk.data.plain(), half(values(o.dwk.data.plain()), rank), 1e-5, 1e-6, "dwk");
    recompute_wide_qk_norm(t.ctx, before, own, own_wq, own_wk, rstd);
    EXPECT_EQ(values(before), values(qkv));
  });
}

TEST_P(WideQkNorm, MetaCountsTheSameBytes) {
  expect_same_peak(GetParam(), [](TestContext& t) {
    const Operands o(t, 9);
    wide_qk_norm(t.ctx, o.qkv, kHeads, o.wq, o.wk, kEps, o.rstd);
    recompute_wide_qk_norm(t.ctx, o.qkv, kHeads, o.wq, o.wk, o.rstd);
    wide_qk_norm_backward(t.ctx, o.d, o.before, kHeads, o.wq, o.wk, o.rstd, o.dwq, o.dwk);
  });
}

TEST(WideQkNormChecks, WrongShapesAreRefused) {
  TestContext t;
  const Operands o(t, 3);
  const Tensor per_head = t.zeros({kHeads.dim}), rstds = t.zeros({3, 6}, DType::F32);
  EXPECT_THROW(wide_qk_norm(t.ctx, o.qkv, kHeads, per_head, per_head, kEps), Error);
  EXPECT_THROW(wide_qk_norm(t.ctx, o.qkv, kHeads, o.wq, o.wk, kEps, rstds), Error);
  EXPECT_THROW(recompute_wide_qk_norm(t.ctx, o.qkv, kHeads, o.wq, o.wk, {}), Error);
  EXPECT_THROW(wide_qk_norm_backward(t.ctx, o.d, o.before, kHeads, o.wq, o.wk, {}, o.dwq, o.dwk), Error);
  EXPECT_THROW(wide_qk_norm_backward(t.ctx, o.d, t.zeros({2, kHeads.cols()}), kHeads, o.wq, o.wk, o.rstd, o.dwq, o.dwk),
               Error);
}

}  // namespace
}  // namespace agoq::ops::test
