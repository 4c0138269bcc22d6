#include "ops/attention/rope.h"

#include <complex>
#include <numbers>

#include "ops/support.h"

namespace agoq::ops::test {
namespace {

// Frequencies in double: interpolation between the slowed and the original wave, weighted by how many turns fit the
// original context.
double frequency(const RopeSpec& spec, int64_t i) {
  const double plain = std::exp(-std::log(spec.theta) * 2.0 * static_cast<double>(i) / static_cast<double>(spec.dim));
  if (!spec.llama3) return plain / spec.linear_factor;
  const double turns = static_cast<double>(spec.llama3->original_max_positions) * plain / (2 * std::numbers::pi);
  const double low = spec.llama3->low_freq_factor, high = spec.llama3->high_freq_factor;
  const double original = std::clamp((turns - low) / (high - low), 0.0, 1.0);
  return plain * (original + (1 - original) / spec.llama3->factor);
}

// Pair (i, i + D/2) of a head is a complex number turned by position · frequency.
Values reference(const Values& qkv, const Heads& heads, const RopeSpec& spec, const std::vector<int>& positions,
                 double direction = 1) {
  Values out = qkv;
  const int64_t half = heads.dim / 2;
  for (size_t t = 0; t < positions.size(); ++t)
    for (int64_t h = 0; h < heads.query + heads.kv; ++h)
      for (int64_t i = 0; i < half; ++i) {
        const size_t re = t * static_cast<size_t>(heads.cols()) + static_cast<size_t>(h * heads.dim + i);
        const size_t im = re + static_cast<size_t>(half);
        const auto turned =
            std::complex(qkv[re], qkv[im]) * std::polar(1.0, direction * positions[t] * frequency(spec, i));
        out[re] = turned.real();
        out[im] = turned.imag();
      }
  return out;
}

struct Case {
  Heads heads;
  RopeSpec spec;
};
std::vector<Case> cases() {
  RopeSpec plain{8, 10000, {}, 1}, linear{16, 10000, {}, 4}, long_theta{6, 500000, {}, 1};
  RopeSpec llama3{64, 500000, Llama3Scaling{8, 1, 4, 8192}, 1};
  return {{{3, 1, 8}, plain}, {{4, 4, 16}, linear}, {{1, 1, 6}, long_theta}, {{2, 1, 64}, llama3}};
}

const std::vector<int> kPositions = {0, 1, 2, 3, 500, 0, 1, 77, 1023};  // documents packed into one micro-batch

Tensor table_of(TestContext& t, const RopeSpec& spec, int64_t positions = 1024) {
  const Tensor table = t.zeros({positions, spec.dim}, DType::F32);
  fill_rope_table(spec, table);
  return table;
}

Tensor set_positions(TestContext& t, const std::vector<int>& positions) {
  return t.ctx.positions = t.filled(
             {static_cast<int64_t>(positions.size())}, [&](int64_t i) { return positions[static_cast<size_t>(i)]; },
             DType::I32);
}

TEST(Rope, TableMatchesDoubleToTheRoundingOfTheAngle) {
  for (const Case& c : cases()) {
    TestContext t;
    const Tensor table = table_of(t, c.spec, 4096);
    for (int64_t p : {0, 1, 2, 1000, 4095})
      for (int64_t i = 0; i < c.spec.dim / 2; ++i) {
        const double angle = static_cast<double>(p) * frequency(c.spec, i);
        // fp32 exponent, power, reciprocal, scaling and angle: each half a unit, the exponent's times ln(theta).
        const double tolerance = 0x1p-23 * (4 + std::log(c.spec.theta)) * angle + 0x1p-24;
        EXPECT_NEAR(get(table, p * c.spec.dim + i), std::cos(angle), tolerance);
        EXPECT_NEAR(get(table, p * c.spec.dim + c.spec.dim / 2 + i), std::sin(angle), tolerance);
      }
  }
}

// Wave lengths at the borders of LLaMA 3.1's bands, from its definition: short waves stay, long ones are 8 times
// longer.
TEST(Rope, Llama3ScalingKeepsShortWavesAndStretchesLongOnes) {
  TestContext t;
  const RopeSpec scaled{128, 500000, Llama3Scaling{8, 1, 4, 8192}, 1}, plain{128, 500000, {}, 1};
  const Tensor a = table_of(t, scaled, 2), b = table_of(t, plain, 2);
  const auto angle = [](const Tensor& table, int64_t i) { return std::asin(get(table, 128 + 64 + i)); };
  EXPECT_EQ(get(a, 128 + 64), get(b, 128 + 64));  // pair 0: a wave of 2π
  EXPECT_NEAR(angle(a, 63) * 8, angle(b, 63), 1e-6 * angle(b, 63));
  for (int64_t i = 1; i < 64; ++i) EXPECT_LE(angle(a, i), angle(b, i) * (1 + 1e-6));
}

class RopeTypes : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Compute, RopeTypes, testing::Values(DType::F32, DType::BF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(RopeTypes, TurnsQueriesAndKeysAndLeavesValues) {
  for (const Case& c : cases()) {
    TestContext t(GetParam());
    set_positions(t, kPositions);
    const Tensor table = table_of(t, c.spec);
    const int64_t rows = static_cast<int64_t>(kPositions.size());
    for (double direction : {1.0, -1.0}) {
      const Tensor qkv = t.random({rows, c.heads.cols()});
      const Values before = values(qkv);
      (direction > 0 ? rope : rope_backward)(t.ctx, qkv, c.heads, table);
      // The fp32 angle at position 1023 is good to about 1e-3; its effect is bounded by the length of a pair.
      const double step = (GetParam() == DType::BF16 ? 0x1p-8 : 0x1p-22) + 1023 * 0x1p-23 * 18;
      expect_close(qkv, reference(before, c.heads, c.spec, kPositions, direction), step, 2 * step);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t i = c.heads.v_begin(); i < c.heads.cols(); ++i)
          EXPECT_EQ(get(qkv, row * c.heads.cols() + i), before[static_cast<size_t>(row * c.heads.cols() + i)]);
    }
  }
}

TEST(RopeBackward, IsTheTransposeAndTheInverse) {
  for (const Case& c : cases()) {
    TestContext t;
    set_positions(t, kPositions);
    const Tensor table = table_of(t, c.spec);
    const Shape shape{static_cast<int64_t>(kPositions.size()), c.heads.cols()};
    const Tensor x = t.random(shape), y = t.random(shape);
    const Values x0 = values(x), y0 = values(y);
    rope(t.ctx, x, c.heads, table);
    rope_backward(t.ctx, y, c.heads, table);
    EXPECT_NEAR(dot(values(x), y0), dot(x0, values(y)), 1e-4);
    rope_backward(t.ctx, x, c.heads, table);
    expect_close(x, x0, 1e-5, 1e-6);
  }
}

TEST(RopeBackward, AgreesWithFiniteDifferences) {
  const Case c = cases()[0];
  const std::vector<int> positions = {0, 5, 9};
  TestContext t;
  set_positions(t, positions);
  const Tensor table = table_of(t, c.spec), d = t.random({3, c.heads.cols()}), x = t.random({3, c.heads.cols()});
  const Values upstream = values(d);
  const Loss loss = [&](const Values& v) { return dot(upstream, reference(v, c.heads, c.spec, positions)); };
  const Values numeric = numeric_gradient(loss, values(x));
  rope_backward(t.ctx, d, c.heads, table);
  expect_close(d, numeric, 1e-5, 1e-5);
}

// Scores depend on the distance of query and key alone.
TEST(Rope, ScoresDependOnDistance) {
  const RopeSpec spec{16, 10000, {}, 1};
  const Heads heads{1, 1, 16};
  TestContext t;
  set_positions(t, {10, 3, 907, 900});
  const Tensor table = table_of(t, spec), qkv = t.random({4, heads.cols()});
  for (int64_t row = 1; row < 4; ++row)
    for (int64_t i = 0; i < heads.cols(); ++i) set(qkv, row * heads.cols() + i, get(qkv, i));
  rope(t.ctx, qkv, heads, table);
  const auto score = [&](int64_t query, int64_t key) {
    double total = 0;
    for (int64_t i = 0; i < 16; ++i)
      total += get(qkv, query * heads.cols() + i) * get(qkv, key * heads.cols() + 16 + i);
    return total;
  };
  EXPECT_NEAR(score(0, 1), score(2, 3), 1e-3);
  EXPECT_GT(std::abs(score(0, 1) - score(0, 3)), 1e-2);
}

TEST(Rope, RefusesWrongShapes) {
  TestContext t;
  const Heads heads{2, 1, 8};
  const Tensor table = table_of(t, RopeSpec{8, 10000, {}, 1}, 16);
  set_positions(t, {0, 1});
  EXPECT_THROW(rope(t.ctx, t.zeros({2, 31}), heads, table), Error);
  EXPECT_THROW(rope(t.ctx, t.zeros({3, 32}), heads, table), Error);
  EXPECT_THROW(rope(t.ctx, t.zeros({2, 32}), heads, t.zeros({16, 4}, DType::F32)), Error);
  EXPECT_THROW(rope(t.ctx, t.zeros({2, 20}), Heads{2, 1, 5}, t.zeros({16, 5}, DType::F32)), Error);
  EXPECT_THROW(fill_rope_table(RopeSpec{7, 10000, {}, 1}, t.zeros({16, 7}, DType::F32)), Error);
}

TEST(Rope, MetaCountsTheSameBytes) {
  expect_same_peak(DType::BF16, [](TestContext& t) {
    const Heads heads{2, 1, 8};
    set_positions(t, {0, 1, 2});
    const Tensor table = table_of(t, RopeSpec{8, 10000, {}, 1}, 16);
    rope(t.ctx, t.random({3, heads.cols()}), heads, table);
  });
}

}  // namespace
}  // namespace agoq::ops::test
