#include "ops/adamw.h"

#include "support.h"

namespace agoq::ops {
namespace {

using codec::Codec;
using test::TestContext;
using test::Values;

constexpr int64_t kRows = 6, kCols = 300;

Weight weight(TestContext& t, const std::string& form, int64_t rows, int64_t cols) {
  Weight w{t.zeros({rows, cols}, form == "fp32" ? DType::F32 : DType::BF16), {}, {}};
  if (form == "split") w.correction = t.zeros({rows, cols}, DType::I16);
  if (form == "both") w.master = t.zeros({rows, cols}, DType::F32);
  return w;
}

AdamWState state(TestContext& t, const std::string& form, Codec grad, bool eight_bits, int64_t rows = kRows,
                 int64_t cols = kCols) {
  const codec::RowBlocks row(cols);
  return {weight(t, form, rows, cols), t.kept(grad, rows, row),
          t.kept(eight_bits ? Codec::Dyn8 : Codec::Fp32, rows, row),
          t.kept(eight_bits ? Codec::Dyn8Unsigned : Codec::Fp32, rows, row), 17};
}

// Loshchilov & Hutter's algorithm 2 for one number, in double.
struct Scalar {
  double p, m = 0, v = 0;
  void step(double g, const AdamWStep& s) {
    g *= s.gradient_scale;
    m = s.beta1 * m + (1 - s.beta1) * g;
    v = s.beta2 * v + (1 - s.beta2) * g * g;
    const double mhat = m / (1 - std::pow(s.beta1, s.step)), vhat = v / (1 - std::pow(s.beta2, s.step));
    p = p - s.lr * s.weight_decay * p - s.lr * mhat / (std::sqrt(vhat) + s.eps);
  }
};

std::vector<float> read(const Weight& w) {
  std::vector<float> all(static_cast<size_t>(w.value.count()));
  load_fp32(w, all.data());
  return all;
}

// 20 steps with gradients of sizes from 1e-6 to 1; returns the weights. `check` compares with doubles.
std::vector<float> train(const std::string& form, Codec grad, bool eight_bits, bool check, int threads = 2) {
  return test::with_threads(threads, [&] {
    TestContext t;
    const AdamWState s = state(t, form, grad, eight_bits);
    const Tensor first = t.random({kRows, kCols}, 0.3, DType::F32), g = t.zeros({kRows, kCols}, DType::F32);
    store_fp32(s.weight, first.as<float>());
    std::vector<Scalar> want;
    for (double p : test::values(first)) want.push_back({p});
    std::normal_distribution<float> normal;
    AdamWStep step{.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .gradient_scale = 0.7f};
    for (step.step = 1; step.step <= 20; ++step.step) {
      step.lr *= 0.97;
      t.ctx.random.step = static_cast<uint32_t>(step.step);
      for (int64_t i = 0; i < g.count(); ++i) {
        g.as<float>()[i] = normal(t.generator) * std::pow(10.0f, static_cast<float>(-(i % 7)));
      }
      codec::encode(t.ctx, g, s.grad);
      const Values decoded = test::values(t.decoded(s.grad));
      adamw(t.ctx, s, step);
      for (size_t i = 0; i < want.size(); ++i) want[i].step(decoded[i], step);
    }
    const std::vector<float> got = read(s.weight);
    // An ulp of p and of the update at each of the steps.
    for (size_t i = 0; check && i < got.size(); ++i)
      EXPECT_NEAR(got[i], want[i].p, 20 * (0x1p-23 * std::abs(want[i].p) + 1e-8));
    return got;
  });
}

TEST(AdamW, TwentyStepsMatchTheScalarAlgorithm) {
  for (const std::string form : {"split", "fp32", "both"})
    for (Codec grad : {Codec::Fp32, Codec::Int8}) train(form, grad, false, true);
}

TEST(AdamW, AllFormsOfTheWeightTrainAlikeToTheBit) {
  for (bool eight_bits : {false, true}) {
    const auto master = train("fp32", Codec::Int8, eight_bits, false);
    EXPECT_EQ(train("split", Codec::Int8, eight_bits, false), master);
    EXPECT_EQ(train("both", Codec::Int8, eight_bits, false), master);
  }
}

TEST(AdamW, SameBitsUnderAnyNumberOfThreads) {
  EXPECT_EQ(train("split", Codec::Int8, true, false, 1), train("split", Codec::Int8, true, false, 2));
}

TEST(AdamW, Bf16HalfOfBothIsTheRoundedMaster) {
  TestContext t;
  const AdamWState s = state(t, "both", Codec::Fp32, false);
  const Tensor first = t.random({kRows, kCols}, 1, DType::F32);
  store_fp32(s.weight, first.as<float>());
  codec::encode(t.ctx, t.random({kRows, kCols}, 1, DType::F32), s.grad);
  adamw(t.ctx, s, {.lr = 0.1});
  for (int64_t i = 0; i < first.count(); ++i) {
    const double exact = test::get(s.weight.master, i);
    EXPECT_NE(exact, test::get(first, i));
    EXPECT_NEAR(test::get(s.weight.value, i), exact, std::abs(exact) * 0x1p-8);
  }
}

// Nearest rounding would leave v where it started: at beta2 = 0.999 a step adds less than half a code.
TEST(AdamW, EightBitMomentsReachAConstantGradient) {
  TestContext t;
  const AdamWState s = state(t, "fp32", Codec::Fp32, true, 4, 128);
  const Tensor g = t.filled(
      {4, 128}, [](int64_t i) { return (i % 2 ? -1 : 1) * std::pow(10.0, -(i % 5) * 0.5); }, DType::F32);
  codec::encode(t.ctx, g, s.grad);
  AdamWStep step{.lr = 0, .beta1 = 0.9, .beta2 = 0.999};
  for (step.step = 1; step.step <= 10000; ++step.step) {
    t.ctx.random.step = static_cast<uint32_t>(step.step);
    adamw(t.ctx, s, step);
  }
  const Values m = test::values(t.decoded(s.m)), root = test::values(t.decoded(s.v));
  for (size_t size = 0; size < 5; ++size) {
    double m_ratio = 0, v_ratio = 0, count = 0;
    for (size_t i = 0; i < m.size(); ++i) {
      if (i % 10 != size && i % 10 != size + 5) continue;  // i % 5 == size
      const double exact = test::get(g, static_cast<int64_t>(i));
      m_ratio += m[i] / exact;
      v_ratio += root[i] * root[i] / (exact * exact);
      count += 1;
    }
    EXPECT_NEAR(m_ratio / count, 1, 0.02) << "m of size " << size;
    EXPECT_NEAR(v_ratio / count, 1, 0.02) << "v of size " << size;
  }
}

TEST(AdamW, MomentsUseTheirOwnDraws) {
  TestContext t;
  const AdamWState s = state(t, "fp32", Codec::Fp32, true);
  codec::encode(t.ctx, t.random({kRows, kCols}, 1, DType::F32), s.grad);
  const auto moments = [&](uint32_t step, uint32_t micro_batch) {
    codec::zero(t.ctx, s.m);
    codec::zero(t.ctx, s.v);
    t.ctx.random.step = step;
    t.ctx.random.micro_batch = micro_batch;
    adamw(t.ctx, s, {});
    return std::array{test::values(t.decoded(s.m)), test::values(t.decoded(s.v))};
  };
  const auto first = moments(1, 0);
  EXPECT_EQ(moments(1, 5), first) << "the update is one per step, whatever micro-batch ran last";
  EXPECT_NE(moments(2, 0), first);
}

TEST(AdamW, RefusesStatesThatDoNotFit) {
  TestContext t;
  AdamWState s = state(t, "split", Codec::Int8, true);
  EXPECT_THROW(adamw(t.ctx, s, {.step = 0}), Error);
  std::swap(s.m, s.v);
  EXPECT_THROW(adamw(t.ctx, s, {}), Error);
  std::swap(s.m, s.v);
  s.weight.correction = {};
  EXPECT_THROW(adamw(t.ctx, s, {}), Error);
}

TEST(SquaredNorm, SumsSquaresOfWhatIsStored) {
  for (Codec codec : {Codec::Fp32, Codec::Bf16, Codec::Int8, Codec::Fp8}) {
    TestContext t;
    const codec::Quantized g = t.kept(codec, 31, codec::RowBlocks(200, 100));
    codec::encode(t.ctx, t.random({31, 200}, 0.1, DType::F32), g);
    const Values decoded = test::values(t.decoded(g));
    const Tensor out = t.zeros({1}, DType::F32);
    squared_norm(t.ctx, g, out);
    const double want = test::dot(decoded, decoded);
    EXPECT_NEAR(test::get(out, 0), want, want * 1e-7);
  }
}

TEST(SquaredNorm, SameBitsUnderAnyNumberOfThreadsAndNoDamageHidden) {
  TestContext t;
  const codec::Quantized g = t.kept(Codec::Fp8, 100, codec::RowBlocks(333));
  const Tensor x = t.random({100, 333}, 1, DType::F32), out = t.zeros({1}, DType::F32);
  const auto norm = [&](int threads) {
    codec::encode(t.ctx, x, g);
    return test::with_threads(threads, [&] { return squared_norm(t.ctx, g, out), test::get(out, 0); });
  };
  EXPECT_EQ(norm(1), norm(2));
  for (float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    x.as<float>()[777] = bad;
    EXPECT_FALSE(std::isfinite(norm(2)));
  }
}

TEST(AdamW, DryRunCountsTheSameBytes) {
  test::expect_same_peak(DType::F32, [](TestContext& t) {
    const AdamWState s = state(t, "split", Codec::Int8, true);
    squared_norm(t.ctx, s.grad, t.zeros({1}, DType::F32));
    adamw(t.ctx, s, {});
  });
}

}  // namespace
}  // namespace agoq::ops
