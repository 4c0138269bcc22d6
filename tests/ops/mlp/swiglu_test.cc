#include "ops/mlp/swiglu.h"

#include <limits>

#include "ops/cpu.h"
#include "ops/support.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

double silu(double x) {
  return x / (1 + std::exp(-x));
}

// h [rows, width] of gate | up [rows, 2 width].
Values reference(const Values& gate_up, int64_t width) {
  Values h;
  for (size_t first = 0; first < gate_up.size(); first += static_cast<size_t>(2 * width))
    for (size_t i = first; i < first + static_cast<size_t>(width); ++i)
      h.push_back(silu(gate_up[i]) * gate_up[i + static_cast<size_t>(width)]);
  return h;
}

// The gradient by the quotient rule instead of the product form that the kernel uses.
Values reference_gradient(const Values& dh, const Values& gate_up, int64_t width) {
  Values d(gate_up.size());
  for (size_t j = 0; j < dh.size(); ++j) {
    const size_t w = static_cast<size_t>(width), i = j / w * 2 * w + j % w;
    const double x = gate_up[i], e = std::exp(-x);
    d[i] = dh[j] * gate_up[i + w] * (1 + e + x * e) / ((1 + e) * (1 + e));
    d[i + w] = dh[j] * silu(x);
  }
  return d;
}

// Error in units of the last place of the fp32 result (2^-149 below the normal range).
double error_in_ulps(float got, double exact) {
  if (exact > 0x1.fffffep127) return got == std::numeric_limits<float>::infinity() || exact < 0x1.000001p128 ? 0 : 1e9;
  const double ulp = std::max(std::ldexp(1.0, std::ilogb(std::max(exact, 1e-300)) - 23), 0x1p-149);
  return std::abs(double{got} - exact) / ulp;
}

TEST(FastExp, WithinTwoUnitsInTheLastPlaceEverywhere) {
  double worst = 0;
  float where = 0;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 509) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (std::isnan(x)) continue;
    const double error = error_in_ulps(cpu::fast_exp(x), std::exp(double{x}));
    if (error > worst) {
      worst = error;
      where = x;
    }
  }
  for (float x = -105; x < 90; x += 1.0f / 4096) {
    const double error = error_in_ulps(cpu::fast_exp(x), std::exp(double{x}));
    if (error > worst) {
      worst = error;
      where = x;
    }
  }
  RecordProperty("worst_ulps", std::to_string(worst));
  EXPECT_LE(worst, 2.0) << "at " << where;
}

TEST(FastExp, Limits) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(cpu::fast_exp(0.0f), 1.0f);
  EXPECT_EQ(cpu::fast_exp(-0.0f), 1.0f);
  EXPECT_EQ(cpu::fast_exp(inf), inf);
  EXPECT_EQ(cpu::fast_exp(89.0f), inf);
  EXPECT_EQ(cpu::fast_exp(-inf), 0.0f);
  EXPECT_EQ(cpu::fast_exp(-105.0f), 0.0f);
  EXPECT_GT(cpu::fast_exp(-103.0f), 0.0f);
  EXPECT_TRUE(std::isnan(cpu::fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

class Swiglu : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Compute, Swiglu, testing::Values(DType::F32, DType::BF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(Swiglu, MatchesTheReference) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {5, 130}, {130, 344}}) {
    TestContext t(GetParam());
    const Tensor gate_up = t.random({rows, 2 * width}, 3);
    expect_close_as(swiglu(t.ctx, gate_up), reference(values(gate_up), width));
  }
}

TEST(SwigluExtremes, LargeGatesSaturateAndNanPasses) {
  TestContext t;
  const Tensor gate_up = t.zeros({1, 10});
  const double gates[] = {200, -200, 88.9, -88.9, std::nan("")};
  for (int64_t i = 0; i < 5; ++i) {
    set(gate_up, i, gates[i]);
    set(gate_up, 5 + i, 2);
  }
  const Tensor h = swiglu(t.ctx, gate_up);
  expect_close({get(h, 0), get(h, 1), get(h, 2), get(h, 3)}, {400, 0, 177.8, 0}, 1e-6, 1e-30);
  EXPECT_TRUE(std::isnan(get(h, 4)));
  const auto kept = t.kept(Codec::Fp32, 1, RowBlocks(10, 5));
  codec::encode(t.ctx, gate_up, kept);
  const Tensor dh = t.filled(
      {1, 5}, [](int64_t) { return 1; }, DType::F32);
  const Tensor d = swiglu_backward(t.ctx, dh, kept).d_gate_up;
  expect_close({get(d, 0), get(d, 1), get(d, 2), get(d, 3)}, {2, 0, 2, 0}, 1e-6, 1e-30);
  EXPECT_TRUE(std::isnan(get(d, 4)));
}

TEST(SwigluBackward, AgreesWithFiniteDifferences) {
  TestContext t;
  const int64_t rows = 3, width = 5;
  const Tensor gate_up = t.random({rows, 2 * width}, 2), dh = t.random({rows, width});
  const auto kept = t.kept(Codec::Fp32, rows, RowBlocks(2 * width, width));
  swiglu(t.ctx, gate_up, kept);
  const SwigluGradients g = swiglu_backward(t.ctx, dh, kept);
  const Values numeric =
      numeric_gradient([&](const Values& x) { return dot(values(dh), reference(x, width)); }, values(gate_up));
  expect_close(g.d_gate_up, numeric, 1e-5, 1e-6);
  expect_close_as(g.h, reference(values(gate_up), width));
}

TEST_P(Swiglu, BackwardWorksOnWhatWasKept) {
  const int64_t rows = 9, width = 520;
  for (Codec codec : {Codec::Fp4, Codec::Fp8, Codec::Bf16, Codec::Fp32})
    for (Codec codec_h : {Codec::None, Codec::Fp4}) {
      TestContext t(GetParam());
      const Tensor gate_up = t.random({rows, 2 * width}, 2), dh = t.random({rows, width});
      const auto kept = t.kept(codec, rows, RowBlocks(2 * width, width / 8));  // gate | up, 8 segments each
      const auto kept_h = t.kept(codec_h, rows, RowBlocks(width, width / 8));
      const Tensor h = swiglu(t.ctx, gate_up, kept, kept_h);
      expect_close_as(h, reference(values(gate_up), width));  // forward stays exact

      // The codes are those of a plain encode of the same numbers.
      const auto plain = t.kept(codec, rows, kept.row);
      codec::encode(t.ctx, gate_up, plain);
      EXPECT_EQ(std::memcmp(plain.codes.data, kept.codes.data, plain.codes.bytes()), 0);

      const Values decoded = values(t.decoded(kept));
      const SwigluGradients g = swiglu_backward(t.ctx, dh, kept, kept_h);
      expect_close_as(g.d_gate_up, reference_gradient(values(dh), decoded, width));
      expect_close_as(g.h, kept_h.kept() ? values(t.decoded(kept_h)) : reference(decoded, width));
    }
}

TEST(Swiglu, IndependentOfThreads) {
  const auto run = [](int threads) {
    return with_threads(threads, [] {
      TestContext t;
      const Tensor gate_up = t.random({77, 2 * 96}, 2), dh = t.random({77, 96});
      const auto kept = t.kept(Codec::Fp4, 77, RowBlocks(2 * 96, 96));
      const Values h = values(swiglu(t.ctx, gate_up, kept));
      const SwigluGradients g = swiglu_backward(t.ctx, dh, kept);
      return std::vector<Values>{h, values(g.d_gate_up), values(g.h)};
    });
  };
  EXPECT_EQ(run(1), run(2));
}

TEST(Swiglu, RefusesWrongShapes) {
  TestContext t;
  EXPECT_THROW(swiglu(t.ctx, t.zeros({2, 7})), Error);
  EXPECT_THROW(swiglu(t.ctx, t.zeros({2, 8}, DType::BF16)), Error);
  EXPECT_THROW(swiglu(t.ctx, t.zeros({2, 8}), t.kept(Codec::Fp4, 2, RowBlocks(4))), Error);
  EXPECT_THROW(swiglu_backward(t.ctx, t.zeros({2, 4}), {}), Error);
  EXPECT_THROW(swiglu_backward(t.ctx, t.zeros({2, 4}), t.kept(Codec::Fp4, 3, RowBlocks(8, 4))), Error);
}

TEST_P(Swiglu, MetaCountsTheSameBytes) {
  expect_same_peak(GetParam(), [](TestContext& t) {
    const auto kept = t.kept(Codec::Fp4, 10, RowBlocks(300, 150)), kept_h = t.kept(Codec::Fp8, 10, RowBlocks(150));
    const Tensor h = swiglu(t.ctx, t.random({10, 300}), kept, kept_h);
    swiglu_backward(t.ctx, h, kept, kept_h);
  });
}

}  // namespace
}  // namespace agoq::ops::test
