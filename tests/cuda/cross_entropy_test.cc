#include "ops/cross_entropy.h"

#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

struct Sizes {
  int64_t tokens, hidden, vocabulary;
};

class CudaCrossEntropy : public CudaTest {
 protected:
  struct Inputs {
    Twin n, w, nll;
    Targets cpu, gpu;
  };
  // Every fifth token does not count; the others weigh 1 or 0.25.
  Inputs make(const Sizes& s, double size = 1) {
    Inputs in;
    in.n = random({s.tokens, s.hidden}, size);
    in.w = random({s.vocabulary, s.hidden}, 1 / std::sqrt(static_cast<double>(s.hidden)));
    in.nll = zeros({s.tokens}, DType::F32);
    const auto weight = [](int64_t i) { return i % 5 == 0 ? 0.0 : i % 3 == 0 ? 0.25 : 1.0; };
    const auto target = [&](int64_t i) { return static_cast<double>((i * 31 + s.vocabulary - 1) % s.vocabulary); };
    const Twin tokens = twin(cpu->filled({s.tokens}, target, DType::I32));
    const Twin weights = twin(cpu->filled({s.tokens}, weight, DType::F32));
    in.cpu = {tokens.cpu, weights.cpu};
    in.gpu = {tokens.gpu, weights.gpu};
    return in;
  }

  void compare(const Sizes& s, double size = 1) {
    const Inputs in = make(s, size);
    const bool exact = c().compute() == DType::F32;
    const auto expect_same_nll = [&](const char* what) {
      expect_close(down(in.nll.gpu), values(in.nll.cpu), 2e-6, 4e-6 * size, what);
    };
    head_loss(c(), in.n.cpu, in.w.cpu, in.cpu, in.nll.cpu);
    head_loss(g(), in.n.gpu, in.w.gpu, in.gpu, in.nll.gpu);
    expect_same_nll("nll");
    const GradTwin dw = grad(s.vocabulary, codec::RowBlocks(s.hidden));
    const Tensor want = head_loss_backward(c(), in.n.cpu, in.w.cpu, in.cpu, 0.5f, in.nll.cpu, dw.cpu);
    const Tensor got = head_loss_backward(g(), in.n.gpu, in.w.gpu, in.gpu, 0.5f, in.nll.gpu, dw.gpu);
    expect_same_nll("nll of backward");
    // Gradients of the logits are rounded to bf16, alike but for ties; dn is rounded once more.
    expect_relative(want, got, exact ? 5e-6 : 0x1p-8, "dn");
    expect_relative(dw.cpu.data.plain(), dw.gpu.data.plain(), exact ? 5e-6 : 0x1p-9, "dw");
  }
};

TEST_F(CudaCrossEntropy, RowsOfAnyLength) {
  for (const DType compute : {DType::BF16, DType::F32})
    for (const int64_t vocabulary : {1, 7, 8, 83, 257, 8192, 9001, 16392, 40000}) {
      start(compute);
      compare({60, 24, vocabulary});
    }
}

TEST_F(CudaCrossEntropy, AsInAModel) {
  start(DType::BF16, size_t{2} << 30);
  compare({300, 1024, 32000});
}

TEST_F(CudaCrossEntropy, SeveralChunksOfLogits) {
  start(DType::BF16, size_t{3} << 30);
  compare({1500, 64, 128256});
}

TEST_F(CudaCrossEntropy, SeveralGroupsOfGradients) {
  start(DType::F32, size_t{3} << 30);
  compare({4800, 16, 128256});  // 2.3 GiB of gradients of the logits
}

TEST_F(CudaCrossEntropy, HugeLogitsNeitherOverflowNorLoseTheLoss) {
  start(DType::F32);
  const Inputs in = make({64, 16, 40}, 3000);
  head_loss(c(), in.n.cpu, in.w.cpu, in.cpu, in.nll.cpu);
  head_loss(g(), in.n.gpu, in.w.gpu, in.gpu, in.nll.gpu);
  expect_close(down(in.nll.gpu), values(in.nll.cpu), 1e-6, 8e-3);  // logits near 10^4 carry an error near 10^-3
}

TEST_F(CudaCrossEntropy, TokensOfWeightZeroContributeNothing) {
  const Inputs in = make({40, 16, 257});
  const GradTwin dw = grad(257, codec::RowBlocks(16));
  const Tensor dn = down(head_loss_backward(g(), in.n.gpu, in.w.gpu, in.gpu, 1, in.nll.gpu, dw.gpu));
  const Tensor nll = down(in.nll.gpu);
  for (int64_t t = 0; t < 40; t += 5) {
    EXPECT_EQ(get(nll, t), 0.0);
    for (int64_t i = 0; i < 16; ++i) ASSERT_EQ(get(dn, t * 16 + i), 0.0);
  }
}

TEST_F(CudaCrossEntropy, DamageIsNotHidden) {
  start(DType::F32);
  const Inputs in = make({8, 16, 300});
  in.n.cpu.as<float>()[16] = std::nanf("");
  upload(g(), in.n.cpu.data, in.n.gpu);
  head_loss(g(), in.n.gpu, in.w.gpu, in.gpu, in.nll.gpu);
  const Tensor nll = down(in.nll.gpu);
  EXPECT_TRUE(std::isnan(get(nll, 1)));
  EXPECT_FALSE(std::isnan(get(nll, 2)));
}

TEST_F(CudaCrossEntropy, SameBitsEveryTime) {
  const Inputs in = make({100, 64, 9001});
  const auto gradient = [&] {
    const GradTwin dw = grad(9001, codec::RowBlocks(64));
    head_loss_backward(g(), in.n.gpu, in.w.gpu, in.gpu, 1, in.nll.gpu, dw.gpu);
    return down(dw.gpu.data.plain());
  };
  const Tensor first = gradient();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(values(gradient()), values(first));
}

TEST_F(CudaCrossEntropy, DryRunPlansTheSamePeak) {
  start(DType::BF16, size_t{4} << 30);
  const auto run = [](const Sizes& s, codec::Codec codec) {
    return [=](Context& ctx) {
      const auto zeros = [&](Shape shape, DType dtype) { return ctx.arena().allocate("test", dtype, shape); };
      const Tensor n = zeros({s.tokens, s.hidden}, DType::BF16), w = zeros({s.vocabulary, s.hidden}, DType::BF16);
      const Targets targets{zeros({s.tokens}, DType::I32), zeros({s.tokens}, DType::F32)};
      const Tensor nll = zeros({s.tokens}, DType::F32);
      const MainGrad dw{codec::allocate(ctx.arena(), "grad", codec, s.vocabulary, codec::RowBlocks(s.hidden)), 5, true};
      head_loss(ctx, n, w, targets, nll);
      head_loss_backward(ctx, n, w, targets, 1, nll, dw);
    };
  };
  expect_planned_peak(run({1100, 24, 83}, codec::Codec::Int8));
  expect_planned_peak(run({9600, 16, 128256}, codec::Codec::Int8));  // several groups
}

}  // namespace
}  // namespace agoq::ops::test
