#include "ops/head/embedding.h"

#include "ops/support.h"

namespace agoq::ops {
namespace {

using test::TestContext;
using test::Values;

constexpr int64_t kVocabulary = 50, kHidden = 150;

Tensor some_tokens(TestContext& t, int64_t count) {  // some often, some never
  return t.filled(
      {count}, [](int64_t i) { return static_cast<double>(i * i % 7 + (i % 5 == 0 ? 40 : 0)); }, DType::I32);
}

Weight weight(TestContext& t, const std::string& form) {
  Weight w{t.zeros({kVocabulary, kHidden}, form == "fp32" ? DType::F32 : DType::BF16), {}, {}};
  if (form == "split") w.correction = t.zeros({kVocabulary, kHidden}, DType::I16);
  if (form == "both") w.master = t.zeros({kVocabulary, kHidden}, DType::F32);
  return w;
}

TEST(Embedding, GathersEveryFormInEveryComputeType) {
  for (const std::string form : {"split", "fp32", "both"})
    for (DType compute : {DType::F32, DType::BF16}) {
      TestContext t(compute);
      const Weight w = weight(t, form);
      const Tensor exact = t.random({kVocabulary, kHidden}, 1, DType::F32), tokens = some_tokens(t, 33);
      store_fp32(t.ctx, w, exact.as<float>());
      const Tensor out = embedding(t.ctx, tokens, w);
      ASSERT_EQ(out.dtype, compute);
      const Values got = test::values(out);
      for (int64_t i = 0; i < out.count(); ++i) {
        const float x = exact.as<float>()[tokens.as<int32_t>()[i / kHidden] * kHidden + i % kHidden];
        Bf16 high;
        int16_t low;
        split_fp32(x, high, low);
        ASSERT_EQ(got[static_cast<size_t>(i)], compute == DType::F32 ? x : to_float(high)) << form;
      }
    }
}

// before + Σ dx of each token, in double.
Values expected(const Values& before, const Tensor& tokens, const Tensor& dx) {
  Values sum = before;
  for (int64_t i = 0; i < dx.count(); ++i)
    sum[static_cast<size_t>(tokens.as<int32_t>()[i / kHidden] * kHidden + i % kHidden)] += test::get(dx, i);
  return sum;
}

TEST(EmbeddingBackward, AddsUpRepeatedTokens) {
  for (DType compute : {DType::F32, DType::BF16}) {
    TestContext t(compute);
    const MainGrad grad = t.grad(kVocabulary, kHidden);
    const Tensor before = t.random({kVocabulary, kHidden}, 1, DType::F32);
    std::memcpy(grad.data.codes.data, before.data, before.bytes());
    const Tensor tokens = some_tokens(t, 301), dx = t.random({301, kHidden});
    embedding_backward(t.ctx, tokens, dx, grad);
    test::expect_close(grad.data.plain(), expected(test::values(before), tokens, dx), 1e-5, 1e-5);
  }
}

TEST(EmbeddingBackward, TouchesOnlyRowsOfItsTokens) {
  TestContext t;
  const MainGrad grad{t.kept(codec::Codec::Int8, kVocabulary, codec::RowBlocks(kHidden)), 3, true};
  const Tensor before = t.random({kVocabulary, kHidden});
  codec::encode(t.ctx, before, grad.data);
  const Values old = test::values(t.decoded(grad.data));
  const Tensor tokens = some_tokens(t, 64), dx = t.random({64, kHidden});
  embedding_backward(t.ctx, tokens, dx, grad);
  const Values now = test::values(t.decoded(grad.data)), want = expected(old, tokens, dx);
  for (int64_t row = 0; row < kVocabulary; ++row)
    for (int64_t begin = 0; begin < kHidden; begin += codec::kBlock) {
      const int64_t end = std::min(begin + codec::kBlock, kHidden);
      double largest = 0;
      bool touched = false;
      for (int64_t i = 0; i < 64; ++i) touched = touched || tokens.as<int32_t>()[i] == row;
      for (int64_t c = begin; c < end; ++c)
        largest = std::max(largest, std::abs(want[static_cast<size_t>(row * kHidden + c)]));
      for (int64_t c = begin; c < end; ++c) {
        const auto i = static_cast<size_t>(row * kHidden + c);
        // Stochastic rounding moves by less than a step; the scale is rounded up by at most 2^-7.
        EXPECT_NEAR(now[i], want[i], touched ? largest / 127 * 1.01 : 0) << "row " << row;
      }
    }
}

TEST(EmbeddingBackward, SameBitsUnderAnyNumberOfThreads) {
  const auto bits = [](int threads) {
    return test::with_threads(threads, [&] {
      TestContext t;
      const MainGrad grad{t.kept(codec::Codec::Int8, kVocabulary, codec::RowBlocks(kHidden)), 3, true};
      const Tensor tokens = some_tokens(t, 200);
      embedding_backward(t.ctx, tokens, t.random({200, kHidden}), grad);
      return test::values(t.decoded(grad.data));
    });
  };
  EXPECT_EQ(bits(1), bits(2));
}

TEST(Embedding, DryRunCountsTheSameBytes) {
  test::expect_same_peak(DType::BF16, [](TestContext& t) {
    const Tensor tokens = some_tokens(t, 40);
    const Weight w = weight(t, "split");
    const Tensor out = embedding(t.ctx, tokens, w);
    embedding_backward(t.ctx, tokens, out, t.grad(kVocabulary, kHidden));
  });
}

TEST(Embedding, RefusesShapesThatDoNotFit) {
  TestContext t;
  const Weight w = weight(t, "fp32");
  EXPECT_THROW(embedding(t.ctx, t.zeros({4}), w), Error);
  EXPECT_THROW(
      embedding_backward(t.ctx, t.zeros({4}, DType::I32), t.zeros({4, kHidden + 1}), t.grad(kVocabulary, kHidden)),
      Error);
}

}  // namespace
}  // namespace agoq::ops
