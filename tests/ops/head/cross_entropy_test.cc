#include "ops/head/cross_entropy.h"

#include "comm/process_group.h"
#include "comm/thread_transport.h"
#include "ops/support.h"

namespace agoq::ops {
namespace {

using test::TestContext;
using test::Values;

struct Reference {
  Values nll, dn, dw;
  double loss = 0;
};

// scale · Σ weight · nll and its gradients by the definition, in double.
Reference reference(const Values& n, const Values& w, const Values& tokens, const Values& weights, double scale) {
  const size_t count = tokens.size(), hidden = n.size() / count, vocabulary = w.size() / hidden;
  Reference r{Values(count), Values(n.size()), Values(w.size())};
  for (size_t t = 0; t < count; ++t) {
    if (weights[t] == 0) continue;
    Values logits(vocabulary);
    for (size_t v = 0; v < vocabulary; ++v)
      for (size_t i = 0; i < hidden; ++i) logits[v] += n[t * hidden + i] * w[v * hidden + i];
    const double most = *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (double x : logits) total += std::exp(x - most);
    const auto target = static_cast<size_t>(tokens[t]);
    r.nll[t] = most + std::log(total) - logits[target];
    r.loss += scale * weights[t] * r.nll[t];
    for (size_t v = 0; v < vocabulary; ++v) {
      const double d = scale * weights[t] * (std::exp(logits[v] - most) / total - (v == target ? 1 : 0));
      for (size_t i = 0; i < hidden; ++i) {
        r.dn[t * hidden + i] += d * w[v * hidden + i];
        r.dw[v * hidden + i] += d * n[t * hidden + i];
      }
    }
  }
  return r;
}

struct Inputs {
  Tensor n, w, nll;
  Targets targets;
  Reference reference(double scale) const {
    return ops::reference(test::values(n), test::values(w), test::values(targets.tokens), test::values(targets.weights),
                          scale);
  }
};

// Every fifth token does not count; the others weigh 1 or 0.25.
Inputs make(TestContext& t, int64_t tokens, int64_t hidden, int64_t vocabulary, double size = 1) {
  Inputs in;
  in.n = t.random({tokens, hidden}, size);
  in.w = t.random({vocabulary, hidden}, 1 / std::sqrt(static_cast<double>(hidden)));
  in.nll = t.zeros({tokens}, DType::F32);
  in.targets.tokens = t.filled(
      {tokens}, [=](int64_t i) { return static_cast<double>(i * 31 % vocabulary); }, DType::I32);
  in.targets.weights = t.filled(
      {tokens}, [](int64_t i) { return i % 5 == 0   ? 0
                                       : i % 3 == 0 ? 0.25
                                                    : 1; }, DType::F32);
  return in;
}

TEST(HeadLoss, MatchesTheDefinitionOverSeveralChunks) {
  TestContext t;
  const Inputs in = make(t, 1100, 24, 83);  // chunks of 1024
  head_loss(t.ctx, in.n, in.w, in.targets, in.nll);
  test::expect_close(in.nll, in.reference(1).nll, 1e-6, 2e-6);
}

TEST(HeadLoss, GradientsMatchAndAccumulateIntoPlainFp32) {
  TestContext t;
  const Inputs in = make(t, 1100, 24, 83);
  const MainGrad dw = t.grad(83, 24);
  const Reference want = in.reference(0.01);
  const Tensor dn = head_loss_backward(t.ctx, in.n, in.w, in.targets, 0.01f, in.nll, dw);
  test::expect_close(in.nll, want.nll, 1e-6, 2e-6, "nll");
  test::expect_close(dn, want.dn, 1e-5, 1e-6 * test::largest(want.dn), "dn");
  test::expect_close(dw.data.plain(), want.dw, 1e-5, 2e-6 * test::largest(want.dw), "dw");
  head_loss_backward(t.ctx, in.n, in.w, in.targets, 0.01f, in.nll, dw);
  Values twice = want.dw;
  for (double& x : twice) x *= 2;
  test::expect_close(dw.data.plain(), twice, 1e-5, 2e-6 * test::largest(twice), "dw twice");
}

TEST(HeadLoss, ReferenceGradientIsThatOfFiniteDifferences) {
  TestContext t;
  const Inputs in = make(t, 7, 5, 6);
  const Values n = test::values(in.n), w = test::values(in.w), tokens = test::values(in.targets.tokens),
               weights = test::values(in.targets.weights);
  const Reference at = reference(n, w, tokens, weights, 0.5);
  const auto of_n = [&](const Values& x) { return reference(x, w, tokens, weights, 0.5).loss; };
  const auto of_w = [&](const Values& x) { return reference(n, x, tokens, weights, 0.5).loss; };
  test::expect_close(at.dn, test::numeric_gradient(of_n, n), 1e-6, 1e-8);
  test::expect_close(at.dw, test::numeric_gradient(of_w, w), 1e-6, 1e-8);
}

TEST(HeadLoss, HugeLogitsNeitherOverflowNorLoseTheLoss) {
  TestContext t;
  const Inputs in = make(t, 64, 16, 40, 3000);  // logits of some thousands
  const MainGrad dw = t.grad(40, 16);
  const Reference want = in.reference(1);
  const Tensor dn = head_loss_backward(t.ctx, in.n, in.w, in.targets, 1, in.nll, dw);
  // Logits near 10^4 carry an fp32 error near 10^-3.
  test::expect_close(in.nll, want.nll, 1e-6, 4e-3);
  test::expect_close(dn, want.dn, 1e-2, 1e-2 * test::largest(want.dn));
  head_loss(t.ctx, in.n, in.w, in.targets, in.nll);
  test::expect_close(in.nll, want.nll, 1e-6, 4e-3);
}

TEST(HeadLoss, TokensOfWeightZeroContributeNothing) {
  const auto gradients = [](double masked) {
    TestContext t;
    const Inputs in = make(t, 40, 16, 30);
    for (int64_t i = 0; i < 40 * 16; ++i)
      if (i / 16 % 5 == 0) in.n.as<float>()[i] *= static_cast<float>(masked);
    const MainGrad dw = t.grad(30, 16);
    const Tensor dn = head_loss_backward(t.ctx, in.n, in.w, in.targets, 1, in.nll, dw);
    for (int64_t i = 0; i < 40; i += 5) EXPECT_EQ(in.nll.as<float>()[i], 0);
    return std::array{test::values(dn), test::values(dw.data.plain())};
  };
  EXPECT_EQ(gradients(1), gradients(-77));
}

TEST(HeadLoss, DamageIsNotHidden) {
  TestContext t;
  const Inputs in = make(t, 8, 16, 30);
  in.n.as<float>()[16] = std::nanf("");
  head_loss(t.ctx, in.n, in.w, in.targets, in.nll);
  EXPECT_TRUE(std::isnan(in.nll.as<float>()[1]));
  EXPECT_FALSE(std::isnan(in.nll.as<float>()[2]));
}

TEST(HeadLoss, QuantizedGradientIsEncodedOnce) {
  TestContext t;
  const Inputs in = make(t, 1100, 24, 83);
  const MainGrad dw{t.kept(codec::Codec::Int8, 83, codec::RowBlocks(24)), 5, true};
  head_loss_backward(t.ctx, in.n, in.w, in.targets, 1, in.nll, dw);
  const Reference want = in.reference(1);
  const Values got = test::values(t.decoded(dw.data));
  for (size_t row = 0; row < 83; ++row) {
    double largest = 0;
    for (size_t i = 0; i < 24; ++i) largest = std::max(largest, std::abs(want.dw[row * 24 + i]));
    for (size_t i = 0; i < 24; ++i) EXPECT_NEAR(got[row * 24 + i], want.dw[row * 24 + i], largest / 127 * 1.01);
  }
}

TEST(HeadLoss, Bf16RoundsOperandsButNotLogits) {
  TestContext t(DType::BF16);
  const Inputs in = make(t, 300, 24, 83);
  const MainGrad dw = t.grad(83, 24);
  const Tensor dn = head_loss_backward(t.ctx, in.n, in.w, in.targets, 1, in.nll, dw);
  const Reference want = in.reference(1);
  test::expect_close(in.nll, want.nll, 1e-6, 2e-6, "nll");
  // dlogits are rounded (2^-9 of each), then summed with random signs; dn is rounded once more.
  test::expect_close(dn, want.dn, 0x1p-8, 0x1p-8 * test::largest(want.dn), "dn");
  test::expect_close(dw.data.plain(), want.dw, 0x1p-9, 0x1p-9 * test::largest(want.dw), "dw");
}

TEST(HeadLoss, DryRunCountsTheSameBytes) {
  for (DType compute : {DType::F32, DType::BF16})
    for (codec::Codec codec : {codec::Codec::Fp32, codec::Codec::Int8})
      test::expect_same_peak(compute, [&](TestContext& t) {
        const Inputs in = make(t, 1100, 24, 83);
        const MainGrad dw{t.kept(codec, 83, codec::RowBlocks(24)), 5, true};
        head_loss(t.ctx, in.n, in.w, in.targets, in.nll);
        head_loss_backward(t.ctx, in.n, in.w, in.targets, 1, in.nll, dw);
      });
}

// A vocabulary of which one rank has one row more than the other, where by its own part each would cut the tokens into
// chunks of another length.
TEST(HeadLoss, RanksOfADividedVocabularyAgreeOnChunks) {
  constexpr int64_t kTokens = 515, kHidden = 3, kVocabulary = 65537, kHalf = kVocabulary / 2;
  TestContext whole(DType::F32);
  const Inputs in = make(whole, kTokens, kHidden, kVocabulary);
  const MainGrad dw = whole.grad(kVocabulary, kHidden);
  head_loss(whole.ctx, in.n, in.w, in.targets, in.nll);
  const Values nll = test::values(in.nll);
  const Values dn = test::values(head_loss_backward(whole.ctx, in.n, in.w, in.targets, 1, in.nll, dw));
  const Values full_dw = test::values(dw.data.plain());

  std::array<Values, 2> losses, partial_sums, parts;
  agoq::test::ThreadWorld world(2);
  world.run([&](comm::Transport& transport) {
    const auto rank = static_cast<size_t>(transport.rank());
    const int64_t begin = rank == 0 ? 0 : kHalf, end = rank == 0 ? kHalf : kVocabulary;
    TestContext t(DType::F32);
    const comm::ProcessGroup group(transport, {0, 1}, 0);
    t.ctx.tensor = &group;
    Targets targets = in.targets;
    targets.first = begin, targets.vocabulary = kVocabulary;
    const Tensor w = in.w.row_range(begin, end), own_nll = t.zeros({kTokens});
    head_loss(t.ctx, in.n, w, targets, own_nll);
    losses[rank] = test::values(own_nll);
    const MainGrad own_dw = t.grad(end - begin, kHidden);
    partial_sums[rank] = test::values(head_loss_backward(t.ctx, in.n, w, targets, 1, own_nll, own_dw));
    parts[rank] = test::values(own_dw.data.plain());
    EXPECT_EQ(test::values(own_nll), losses[rank]) << "of head_loss and of head_loss_backward";
  });
  EXPECT_EQ(losses[0], losses[1]);
  test::expect_close(losses[0], nll, 1e-6, 2e-6, "nll");
  for (size_t i = 0; i < dn.size(); ++i) partial_sums[0][i] += partial_sums[1][i];
  test::expect_close(partial_sums[0], dn, 1e-5, 1e-6 * test::largest(dn), "dn");
  parts[0].insert(parts[0].end(), parts[1].begin(), parts[1].end());
  test::expect_close(parts[0], full_dw, 1e-5, 2e-6 * test::largest(full_dw), "dw");
}

// Bytes that a dry run for a GPU pushes, on the first of some ranks.
size_t planned_bytes(int64_t tokens, int64_t hidden, int64_t vocabulary, int ranks = 1) {
  Arena arena(Device::Meta, 0);
  Context ctx(arena, Device::Cuda, DType::BF16);
  const comm::ProcessGroup group = comm::ProcessGroup::planned(ranks, 0);
  ctx.tensor = &group;
  const auto tensor = [](Shape shape, DType dtype) { return Tensor{nullptr, dtype, Device::Meta, shape}; };
  const int64_t rows = vocabulary / ranks;
  const MainGrad dw{codec::allocate(arena, Owner::Operands, codec::Codec::Int8, rows, codec::RowBlocks(hidden)), 5,
                    true};
  const Targets targets{tensor({tokens}, DType::I32), tensor({tokens}, DType::F32), 0, vocabulary};
  head_loss_backward(ctx, tensor({tokens, hidden}, DType::BF16), tensor({rows, hidden}, DType::BF16), targets, 1,
                     tensor({tokens}, DType::F32), dw);
  return arena.peak_stack_bytes();
}

TEST(HeadLoss, OnAGpuGradientsOfLogitsAreWholeOrInGroups) {
  constexpr double kGiB = 1 << 30, kLlama3 = 128256, kHidden = 4096;
  const auto planned = [&](double tokens, int ranks = 1) {
    return static_cast<double>(planned_bytes(static_cast<int64_t>(tokens), 4096, 128256, ranks)) / kGiB;
  };
  // At 8192 tokens the whole gradient, a chunk of logits and dn; beyond, a group of it and the fp32 sum of dW.
  EXPECT_NEAR(planned(8192), (8192 * kLlama3 * 2 + 8192 * kHidden * 2) / kGiB + 0.5, 0.06);
  EXPECT_NEAR(planned(16384), (4096 * kLlama3 * 2 + 16384 * kHidden * 2 + kLlama3 * kHidden * 4) / kGiB + 0.5, 0.06);
  // Each of two ranks has half of a row, so twice the tokens of it.
  EXPECT_NEAR(planned(16384, 2), (8192 * kLlama3 * 2 + 16384 * kHidden * 2) / kGiB + 0.5, 0.06);
}

TEST(HeadLoss, RefusesShapesThatDoNotFit) {
  TestContext t;
  Inputs in = make(t, 8, 16, 30);
  EXPECT_THROW(head_loss(t.ctx, in.n, t.zeros({30, 15}), in.targets, in.nll), Error);
  EXPECT_THROW(head_loss_backward(t.ctx, in.n, in.w, in.targets, 1, in.nll, t.grad(31, 16)), Error);
  const comm::ProcessGroup group = comm::ProcessGroup::planned(2, 0);
  t.ctx.tensor = &group;
  EXPECT_THROW(head_loss(t.ctx, in.n, in.w, in.targets, in.nll), Error);  // 30 rows of a vocabulary of 0
  t.ctx.tensor = nullptr;
  in.targets.tokens = t.zeros({8}, DType::F32);
  EXPECT_THROW(head_loss(t.ctx, in.n, in.w, in.targets, in.nll), Error);
}

}  // namespace
}  // namespace agoq::ops
