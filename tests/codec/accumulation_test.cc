// What training does with codes: gradients accumulate in them, and Adam's moments live in them.
#include <cstdio>
#include <functional>

#include "codec/codec_fixture.h"

namespace agoq::codec {
namespace {

constexpr int64_t kCols = 128 * 64;

struct Accumulated {
  double error = 0;   // relative L2
  double mean_z = 0;  // mean error in units of its standard deviation
  double shrink = 0;  // how much of the exact sum is missing: minus the regression slope of the error on it
};

// decode + add + encode for every micro-batch, beside the exact sum.
Accumulated accumulate(Codec codec, uint32_t micro_batches, bool stochastic) {
  OwnedQuantized main(codec, 1, RowBlocks(kCols));
  std::vector<float> sum(kCols, 0.0f);
  std::vector<double> exact(kCols, 0.0);
  main.encode(sum);
  for (uint32_t k = 0; k < micro_batches; ++k) {
    const std::vector<float> gradient = gaussian(kCols, 1000 + k);
    sum = main.decode();
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] += gradient[i];
      exact[i] += gradient[i];
    }
    main.encode(sum, stochastic ? Rounding::random({.seed = 1, .micro_batch = k}) : Rounding::nearest());
  }
  const std::vector<float> result = main.decode();
  double error2 = 0, norm2 = 0, mean = 0, cross = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double e = result[i] - exact[i];
    error2 += e * e;
    norm2 += exact[i] * exact[i];
    mean += e;
    cross += e * exact[i];
  }
  return {std::sqrt(error2 / norm2), mean / std::sqrt(error2), -cross / norm2};
}

// The noise of int8 is a random walk of at most 0.0095 of the sum a step, and the sum grows along: 0.0095 sqrt(K / 2).
TEST(MainGradient, Int8AccumulatesWithoutBias) {
  std::printf("main gradients, K micro-batches     int8 stochastic (bound)   nearest   fp8 stochastic   nearest\n");
  for (uint32_t k : {8u, 64u, 256u}) {
    const Accumulated random = accumulate(Codec::Int8, k, true), nearest = accumulate(Codec::Int8, k, false);
    const Accumulated random8 = accumulate(Codec::Fp8, k, true), nearest8 = accumulate(Codec::Fp8, k, false);
    const double bound = 0.0095 * std::sqrt(k / 2.0);
    std::printf("  K = %3u   relative error            %.4f (%.4f)         %.4f    %.4f           %.4f\n", k,
                random.error, bound, nearest.error, random8.error, nearest8.error);
    EXPECT_LE(random.error, bound);
    EXPECT_LT(std::fabs(random.mean_z), 4);
    // Slope of n independent errors on the sum: standard deviation error / sqrt(n).
    EXPECT_LT(std::fabs(random.shrink), 4 * random.error / std::sqrt(static_cast<double>(kCols)));
  }
}

// A large number that never changes, and small contributions far below half a step: nearest rounding loses them all.
TEST(MainGradient, SmallContributionsAreKeptOnAverage) {
  for (bool stochastic : {true, false}) {
    OwnedQuantized main(Codec::Int8, 1, RowBlocks(128));
    std::vector<float> sum(128, 0.0f);
    sum[0] = 127.0f;
    main.encode(sum);
    for (uint32_t k = 0; k < 400; ++k) {
      sum = main.decode();
      for (size_t i = 1; i < sum.size(); ++i) sum[i] += 0.05f;  // 20 after 400
      main.encode(sum, stochastic ? Rounding::random({.seed = 3, .micro_batch = k}) : Rounding::nearest());
    }
    double mean = 0;
    for (size_t i = 1; i < 128; ++i) mean += main.decode()[i] / 127;
    if (stochastic) {
      // 400 draws with probability 0.05: variance 19 each, standard deviation of the mean 0.39
      EXPECT_NEAR(mean, 20.0, 4 * 0.39);
    } else {
      EXPECT_EQ(mean, 0.0);
    }
  }
}

// Adam's moments, kept as m and sqrt(v), beside the exact ones.
class Moments {
 public:
  Moments(Codec m, Codec root_v, int64_t n)
      : m_(m, 1, RowBlocks(n)), s_(root_v, 1, RowBlocks(n)), exact_m_(n, 0.0), exact_v_(n, 0.0) {
    const std::vector<float> zeros(static_cast<size_t>(n), 0.0f);
    m_.encode(zeros);
    s_.encode(zeros);
  }

  void step(const std::vector<float>& gradient) {
    new_m = m_.decode();
    new_s = s_.decode();
    for (size_t i = 0; i < gradient.size(); ++i) {
      const float g = gradient[i];
      exact_m_[i] = 0.9 * exact_m_[i] + 0.1 * g;
      exact_v_[i] = 0.999 * exact_v_[i] + 0.001 * static_cast<double>(g) * g;
      new_m[i] = 0.9f * new_m[i] + 0.1f * g;
      new_s[i] = std::sqrt(0.999f * new_s[i] * new_s[i] + 0.001f * g * g);
    }
    m_.encode(new_m, Rounding::random({.seed = 9, .stream = RngStream::FirstMoment, .step = step_}));
    s_.encode(new_s, Rounding::random({.seed = 9, .stream = RngStream::SecondMoment, .step = step_}));
    ++step_;
  }

  double error_m() const {
    return error(m_.decode(), [&](size_t i) { return exact_m_[i]; });
  }
  double error_s() const {
    return error(s_.decode(), [&](size_t i) { return std::sqrt(exact_v_[i]); });
  }
  // Of the update m / sqrt(v), taken as the optimizer takes it: before the moments are encoded.
  double error_direction() const {
    std::vector<float> update(new_m.size());
    for (size_t i = 0; i < update.size(); ++i) update[i] = new_m[i] / new_s[i];
    return error(update, [&](size_t i) { return exact_m_[i] / std::sqrt(exact_v_[i]); });
  }
  double mean_ratio_s() const {
    const std::vector<float> s = s_.decode();
    double sum = 0;
    for (size_t i = 0; i < s.size(); ++i) sum += s[i] / std::sqrt(exact_v_[i]);
    return sum / static_cast<double>(s.size());
  }
  double mean_ratio_m() const {
    const std::vector<float> m = m_.decode();
    double sum = 0;
    for (size_t i = 0; i < m.size(); ++i) sum += m[i] / exact_m_[i];
    return sum / static_cast<double>(m.size());
  }

 private:
  double error(const std::vector<float>& got, const std::function<double(size_t)>& exact) const {
    double e2 = 0, n2 = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double e = got[i] - exact(i);
      e2 += e * e;
      n2 += exact(i) * exact(i);
    }
    return std::sqrt(e2 / n2);
  }

  OwnedQuantized m_, s_;
  std::vector<double> exact_m_, exact_v_;
  std::vector<float> new_m, new_s;
  uint32_t step_ = 0;
};

TEST(AdamMoments, FollowAConstantGradient) {
  constexpr size_t kN = 128 * 64;
  const std::vector<float> gradient = gaussian(kN, 31);
  Moments moments(Codec::Dyn8, Codec::Dyn8Unsigned, kN);
  for (int step = 0; step < 10000; ++step) moments.step(gradient);
  std::printf("moments after 10,000 constant gradients: error of m %.4f, of sqrt(v) %.4f; mean ratio %.4f, %.4f\n",
              moments.error_m(), moments.error_s(), moments.mean_ratio_m(), moments.mean_ratio_s());
  EXPECT_LT(moments.error_m(), 0.02);
  EXPECT_LT(moments.error_s(), 0.02);
  // Mean over elements of what is kept by what is exact; small elements have the largest relative errors.
  EXPECT_NEAR(moments.mean_ratio_m(), 1.0, 0.01);
  EXPECT_NEAR(moments.mean_ratio_s(), 1.0, 0.01);
}

// Gradients with magnitudes over many octaves within a block: a linear code of the moments drowns the small ones.
TEST(AdamMoments, KeepTheDirectionOfWidelySpreadGradients) {
  constexpr size_t kN = 128 * 32;
  std::printf("relative error of m / sqrt(v), log-normal gradients      dyn8     int8\n");
  // At sigma 2 a few elements far below their block's maximum make most of the error: .25 to .31 from draw to draw.
  for (auto [sigma, bound] : {std::pair{0.0, 0.08}, {1.0, 0.13}, {2.0, 0.40}}) {
    std::vector<float> magnitude = gaussian(kN, 32);
    for (float& x : magnitude) x = static_cast<float>(std::exp(sigma * x));
    Moments dyn8(Codec::Dyn8, Codec::Dyn8Unsigned, kN), int8(Codec::Int8, Codec::Int8, kN);
    for (uint32_t step = 0; step < 2000; ++step) {
      std::vector<float> gradient = gaussian(kN, 5000 + step);
      for (size_t i = 0; i < kN; ++i) gradient[i] *= magnitude[i];
      dyn8.step(gradient);
      if (sigma > 0) int8.step(gradient);
    }
    std::printf("  sigma %.0f                                             %.4f   %.4f\n", sigma, dyn8.error_direction(),
                sigma > 0 ? int8.error_direction() : 0.0);
    EXPECT_LT(dyn8.error_direction(), bound);
    if (sigma > 0) {
      EXPECT_FALSE(int8.error_direction() < 2 * dyn8.error_direction());  // infinite where sqrt(v) became zero
    }
  }
}

}  // namespace
}  // namespace agoq::codec
