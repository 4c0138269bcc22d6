#include "ops/gradient/accumulate.h"

#include "ops/linear/fp8.h"
#include "ops/support.h"

namespace agoq::ops {
namespace {

using codec::Codec;
using test::set;
using test::TestContext;
using test::Values;

MainGrad make(TestContext& t, Codec codec, int64_t rows, int64_t cols, bool stochastic = true) {
  return {t.kept(codec, rows, codec::RowBlocks(cols)), 7, stochastic};
}

Values sum(const Values& a, const Values& b) {
  Values c = a;
  for (size_t i = 0; i < c.size(); ++i) c[i] += b[i];
  return c;
}

// dyᵀ·x in double.
Values product(const Tensor& dy, const Tensor& x) {
  Values dw(static_cast<size_t>(dy.cols() * x.cols()));
  for (int64_t t = 0; t < x.rows(); ++t)
    for (int64_t o = 0; o < dy.cols(); ++o)
      for (int64_t i = 0; i < x.cols(); ++i)
        dw[static_cast<size_t>(o * x.cols() + i)] += test::get(dy, t * dy.cols() + o) * test::get(x, t * x.cols() + i);
  return dw;
}

// What one encoding may move an element by: a step for stochastic rounding, half a step for nearest.
void expect_within_codec(const Values& got, const Values& want, int64_t cols, const MainGrad& grad, double slack = 0) {
  for (size_t i = 0; i < got.size(); ++i) {
    const size_t column = i % static_cast<size_t>(cols), row = i - column;
    const size_t begin = row + column / 128 * 128, end = std::min(begin + 128, row + static_cast<size_t>(cols));
    double largest = 0, bound = 0;
    for (size_t j = begin; j < end; ++j) largest = std::max(largest, std::abs(want[j]));
    switch (grad.data.codec) {
      case Codec::Fp32:
        bound = 1e-6 * largest;
        break;
      case Codec::Bf16:
        bound = std::abs(want[i]) * 0x1p-7 * 1.01 + 1e-6 * largest;
        break;
      case Codec::Int8:
        bound = largest / 127 * 1.01;
        break;
      default:
        bound = std::abs(want[i]) / 8 * 1.01 + largest / 448 / 512 * 1.01;
        break;  // e4m3
    }
    EXPECT_NEAR(got[i], want[i], bound * (grad.stochastic || grad.data.codec == Codec::Fp32 ? 1 : 0.51) + slack) << i;
  }
}

TEST(MainGrad, RoundingNamesTheDrawsOfThisTensor) {
  RandomKey step;
  step.seed = 11;
  step.step = 5;
  step.micro_batch = 9;
  step.stream = RngStream::Sampling;
  const MainGrad grad{{}, 42, true};
  const codec::Rounding r = grad.rounding(step);
  EXPECT_TRUE(r.stochastic);
  EXPECT_EQ(r.key.stream, RngStream::Gradient);
  EXPECT_EQ(r.key.tensor, 42u);
  EXPECT_EQ(r.key.seed, 11u);
  EXPECT_EQ(r.key.step, 5u);
  EXPECT_EQ(r.key.micro_batch, 9u);
  EXPECT_FALSE((MainGrad{{}, 42, false}.rounding(step).stochastic));
}

TEST(Accumulate, AddsWithinTheErrorOfEveryCodec) {
  for (Codec codec : {Codec::Fp32, Codec::Bf16, Codec::Int8, Codec::Fp8})
    for (bool stochastic : {false, true})
      for (DType delta_type : {DType::F32, DType::BF16}) {
        TestContext t;
        const MainGrad grad = make(t, codec, 9, 300, stochastic);
        accumulate(t.ctx, grad, t.random({9, 300}, 1, delta_type));
        const Values before = test::values(t.decoded(grad.data));
        const Tensor delta = t.random({4, 300}, 0.5, delta_type);
        accumulate(t.ctx, grad, delta, 3);  // rows 3 to 7
        Values want = before;
        for (int64_t i = 0; i < delta.count(); ++i) want[static_cast<size_t>(3 * 300 + i)] += test::get(delta, i);
        const Values got = test::values(t.decoded(grad.data));
        expect_within_codec(got, want, 300, grad);
        for (size_t i = 0; i < 900; ++i) ASSERT_EQ(got[i], before[i]) << "rows outside stay";
        for (size_t i = 2100; i < got.size(); ++i) ASSERT_EQ(got[i], before[i]) << "rows outside stay";
      }
}

// The draws belong to the rows of the gradient, however it is fed.
TEST(Accumulate, PiecesOfRowsMakeTheSameCodesAsAll) {
  TestContext t;
  const MainGrad whole = make(t, Codec::Int8, 8, 200), pieces = make(t, Codec::Int8, 8, 200);
  const Tensor delta = t.random({8, 200});
  accumulate(t.ctx, whole, delta);
  accumulate(t.ctx, pieces, delta.row_range(5, 8), 5);
  accumulate(t.ctx, pieces, delta.row_range(0, 5), 0);
  EXPECT_EQ(test::values(t.decoded(whole.data)), test::values(t.decoded(pieces.data)));
}

// A random walk of roundings: at most 0.0095·√(K/2) of the sum of K micro-batches, and its mean is zero.
TEST(Accumulate, StochasticErrorOverMicroBatchesIsARandomWalkWithoutDrift) {
  for (int batches : {8, 64}) {
    TestContext t;
    const MainGrad grad = make(t, Codec::Int8, 64, 256);
    Values exact(64 * 256);
    for (int k = 0; k < batches; ++k) {
      t.ctx.random.micro_batch = static_cast<uint32_t>(k);
      const Tensor delta = t.zeros({64, 256});
      std::normal_distribution<float> normal;
      for (int64_t i = 0; i < delta.count(); ++i) delta.as<float>()[i] = normal(t.generator);
      exact = sum(exact, test::values(delta));
      accumulate(t.ctx, grad, delta);
    }
    const Values got = test::values(t.decoded(grad.data));
    double error2 = 0, size2 = 0, mean = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error2 += (got[i] - exact[i]) * (got[i] - exact[i]);
      size2 += exact[i] * exact[i];
      mean += got[i] - exact[i];
    }
    EXPECT_LE(std::sqrt(error2 / size2), 0.0095 * std::sqrt(batches / 2.0)) << batches;
    EXPECT_LE(std::abs(mean), 4 * std::sqrt(error2)) << batches;  // four standard deviations of the sum
  }
}

TEST(AccumulateDw, MatchesTheProductInEveryCodecAndType) {
  for (DType compute : {DType::F32, DType::BF16})
    for (Codec codec : {Codec::Fp32, Codec::Bf16, Codec::Int8, Codec::Fp8}) {
      TestContext t(compute);
      const MainGrad grad = make(t, codec, 37, 140);
      accumulate(t.ctx, grad, t.random({37, 140}, 3, DType::F32));
      const Values before = test::values(t.decoded(grad.data));
      const Tensor dy = t.random({75, 37}), x = t.random({75, 140});
      accumulate_dw(t.ctx, grad, dy, x);
      const Values dw = product(dy, x);
      // bf16 rounds dW itself unless the main gradient is fp32.
      const double slack = compute == DType::BF16 && codec != Codec::Fp32 ? test::largest(dw) * 0x1p-9 : 1e-4;
      expect_within_codec(test::values(t.decoded(grad.data)), sum(before, dw), 140, grad, slack);
    }
}

// Of operands in 8-bit floats: the product of the numbers that they stand for, also where rows are made in slabs.
TEST(AccumulateDw, OfFp8OperandsIsTheProductOfTheirNumbers) {
  struct Dims {
    int64_t tokens, out, in;
  };
  for (const Dims& d : {Dims{75, 37, 140}, Dims{40, 300, 4100}})  // the second in slabs of 248 rows, or 256
    for (Granularity granularity :
         {Granularity::Tensor, Granularity::Row, Granularity::Block1x128, Granularity::Block128x128}) {
      TestContext t;
      const MainGrad grad = make(t, Codec::Fp32, d.out, d.in);
      const Operand dy = to_fp8_transposed(t.ctx, t.random({d.tokens, d.out}), {DType::E4M3, granularity});
      const Operand x = to_fp8_transposed(t.ctx, t.random({d.tokens, d.in}), {DType::E4M3, granularity});
      const auto number = [](const Operand& a, int64_t row, int64_t i) {
        return double{to_float(a.data.as<E4M3>()[row * a.k() + i])} * a.scale.as<float>()[scale_index(a, row, i)];
      };
      accumulate_dw(t.ctx, grad, dy, x, Accumulation::Fp32);
      accumulate_dw(t.ctx, grad, dy, x, Accumulation::Fp32);
      for (int64_t o = 0; o < d.out; o += 7)
        for (int64_t i = 0; i < d.in; i += 13) {
          double want = 0, size = 0;
          for (int64_t k = 0; k < d.tokens; ++k) {
            const double term = number(dy, o, k) * number(x, i, k);
            want += 2 * term, size += 2 * std::abs(term);
          }
          ASSERT_NEAR(test::get(grad.data.plain(), o * d.in + i), want, size * 0x1p-18) << o << ", " << i;
        }
    }
}

TEST(AccumulateDw, SlabsOfRowsLeaveNoSeam) {
  for (DType compute : {DType::F32, DType::BF16}) {
    TestContext t(compute);
    const int64_t in = 20000, out = 120;  // slabs of 48 rows, panels of 104 tokens
    const MainGrad grad = make(t, Codec::Fp32, out, in), quantized = make(t, Codec::Int8, out, in);
    const Tensor dy = t.random({150, out}), x = t.random({150, in});
    accumulate_dw(t.ctx, grad, dy, x);
    accumulate_dw(t.ctx, quantized, dy, x);
    const Tensor got = grad.data.plain(), coarse = t.decoded(quantized.data);
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = o; i < in; i += 997) {
        double want = 0;
        for (int64_t k = 0; k < 150; ++k) want += test::get(dy, k * out + o) * test::get(x, k * in + i);
        EXPECT_NEAR(test::get(got, o * in + i), want, 1e-4);
        EXPECT_NEAR(test::get(coarse, o * in + i), want, 70.0 / 127 + 0.2);  // blocks' largest are below 70
      }
  }
}

// What is added to zeros, bit for bit, and to what a fresh gradient happens to hold, which must not matter.
void expect_fresh_is_zero(DType compute, Codec codec, const std::function<void(TestContext&, const MainGrad&)>& add) {
  TestContext t(compute);
  t.ctx.random.micro_batch = 3;
  const MainGrad zeros = make(t, codec, 37, 140);
  MainGrad fresh = make(t, codec, 37, 140);
  std::memset(fresh.data.codes.data, 0xff, fresh.data.codes.bytes());  // NaN wherever the format has one
  if (fresh.data.scales) std::memset(fresh.data.scales.data, 0xff, fresh.data.scales.bytes());
  fresh.fresh = true;
  add(t, zeros);
  add(t, fresh);
  EXPECT_EQ(std::memcmp(zeros.data.codes.data, fresh.data.codes.data, zeros.data.codes.bytes()), 0);
  if (zeros.data.scales) {
    EXPECT_EQ(std::memcmp(zeros.data.scales.data, fresh.data.scales.data, zeros.data.scales.bytes()), 0);
  }
}

TEST(Accumulate, AFreshGradientIsOverwritten) {
  for (DType compute : {DType::F32, DType::BF16})
    for (Codec codec : {Codec::Fp32, Codec::Bf16, Codec::Int8, Codec::Fp8}) {
      TestContext inputs(compute);
      const Tensor delta = inputs.random({37, 140}), dy = inputs.random({75, 37}), x = inputs.random({75, 140});
      set(delta, 5, -0.0);
      expect_fresh_is_zero(compute, codec,
                           [&](TestContext& t, const MainGrad& grad) { accumulate(t.ctx, grad, delta); });
      expect_fresh_is_zero(compute, codec,
                           [&](TestContext& t, const MainGrad& grad) { accumulate_dw(t.ctx, grad, dy, x); });
      const Tensor none = inputs.zeros({0, 37}), nothing = inputs.zeros({0, 140});
      expect_fresh_is_zero(compute, codec,
                           [&](TestContext& t, const MainGrad& grad) { accumulate_dw(t.ctx, grad, none, nothing); });
    }
}

TEST(AccumulateDb, SumsColumns) {
  for (DType compute : {DType::F32, DType::BF16}) {
    TestContext t(compute);
    const MainGrad grad = t.grad(1, 77);
    const Tensor dy = t.random({501, 77});
    accumulate_db(t.ctx, grad, dy);
    accumulate_db(t.ctx, grad, dy);
    Values want(77);
    for (int64_t i = 0; i < dy.count(); ++i) want[static_cast<size_t>(i % 77)] += 2 * test::get(dy, i);
    test::expect_close(grad.data.plain(), want, 1e-6, 1e-6);
  }
}

TEST(Accumulate, SameBitsUnderAnyNumberOfThreads) {
  const auto bits = [](int threads) {
    return test::with_threads(threads, [&] {
      TestContext t(DType::BF16);
      const MainGrad grad = make(t, Codec::Int8, 40, 300), bias = t.grad(1, 40);
      const Tensor dy = t.random({90, 40});
      accumulate_dw(t.ctx, grad, dy, t.random({90, 300}));
      accumulate(t.ctx, grad, t.random({40, 300}, 1, DType::F32));
      accumulate_db(t.ctx, bias, dy);
      return std::array{test::values(t.decoded(grad.data)), test::values(bias.data.plain())};
    });
  };
  EXPECT_EQ(bits(1), bits(2));
}

TEST(Accumulate, DryRunCountsTheSameBytes) {
  for (DType compute : {DType::F32, DType::BF16})
    for (Codec codec : {Codec::Fp32, Codec::Int8})
      test::expect_same_peak(compute, [&](TestContext& t) {
        const MainGrad grad = make(t, codec, 40, 300);
        accumulate_dw(t.ctx, grad, t.random({90, 40}), t.random({90, 300}));
        accumulate(t.ctx, grad, t.random({40, 300}));
        accumulate_db(t.ctx, t.grad(1, 40), t.random({90, 40}));
      });
}

TEST(Accumulate, RefusesShapesThatDoNotFit) {
  TestContext t;
  const MainGrad grad = make(t, Codec::Int8, 8, 30);
  EXPECT_THROW(accumulate(t.ctx, grad, t.zeros({4, 31})), Error);
  EXPECT_THROW(accumulate(t.ctx, grad, t.zeros({4, 30}), 5), Error);
  EXPECT_THROW(accumulate(t.ctx, make(t, Codec::None, 8, 30), t.zeros({8, 30})), Error);
  EXPECT_THROW(accumulate_dw(t.ctx, grad, t.zeros({5, 8}), t.zeros({6, 30})), Error);
  EXPECT_THROW(accumulate_db(t.ctx, grad, t.zeros({5, 30})), Error);
}

}  // namespace
}  // namespace agoq::ops
