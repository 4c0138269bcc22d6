#include "ops/head/cross_entropy.h"

#include "cuda/pair.h"
#include "ops/head/cross_entropy_cpu.h"
#include "ops/head/cross_entropy_cuda.h"
#include "ops/head/row_sums.h"

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
    for (const int64_t vocabulary : {1, 7, 8, 83, 257, 8192, 9001, 16392, 40000, 151936, 163848}) {
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

// Rows that several CTAs hold; one of them has the damage, or a number far above all others.
TEST_F(CudaCrossEntropy, GradientsShowDamageAndStandHugeLogits) {
  for (const float damage : {std::nanf(""), std::numeric_limits<float>::infinity(), 1e4f}) {
    start(DType::F32);
    const Inputs in = make({12, 16, 40000});
    for (int64_t i = 0; i < 16; ++i) {
      in.n.cpu.as<float>()[16 + i] = 1;  // of token 1: its logit 39999 is the damage
      in.w.cpu.as<float>()[39999 * 16 + i] = i == 0 ? damage : 0;
    }
    upload(g(), in.n.cpu.data, in.n.gpu), upload(g(), in.w.cpu.data, in.w.gpu);
    const GradTwin dw = grad(40000, codec::RowBlocks(16));
    const Tensor dn = down(head_loss_backward(g(), in.n.gpu, in.w.gpu, in.gpu, 1, in.nll.gpu, dw.gpu));
    EXPECT_EQ(std::isfinite(get(down(in.nll.gpu), 1)), std::isfinite(damage)) << damage;
    EXPECT_EQ(std::isfinite(get(dn, 16)), std::isfinite(damage)) << damage;
  }
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
      const auto zeros = [&](Shape shape, DType dtype) { return ctx.arena().allocate(Owner::Operands, dtype, shape); };
      const Tensor n = zeros({s.tokens, s.hidden}, DType::BF16), w = zeros({s.vocabulary, s.hidden}, DType::BF16);
      const Targets targets{zeros({s.tokens}, DType::I32), zeros({s.tokens}, DType::F32)};
      const Tensor nll = zeros({s.tokens}, DType::F32);
      const MainGrad dw{codec::allocate(ctx.arena(), Owner::Operands, codec, s.vocabulary, codec::RowBlocks(s.hidden)),
                        5, true};
      head_loss(ctx, n, w, targets, nll);
      head_loss_backward(ctx, n, w, targets, 1, nll, dw);
    };
  };
  expect_planned_peak(run({1100, 24, 83}, codec::Codec::Int8));
  expect_planned_peak(run({9600, 16, 128256}, codec::Codec::Int8));  // several groups
}

// The kernels of a divided vocabulary: its parts, which begin at `begins`, one after the other without a group.
class CudaDividedCrossEntropy : public CudaTest {
 protected:
  static constexpr int64_t kTokens = 60;
  static constexpr float kScale = 0.5f;

  struct Rows {
    Tensor logits;  // [kTokens, V] on the CPU
    Targets cpu, gpu;
  };
  // Every fifth token does not count; the others weigh 1 or 0.25. Targets are in all parts, and on their borders.
  Rows make(int64_t vocabulary, double size) {
    const auto weight = [](int64_t i) { return i % 5 == 0 ? 0.0 : i % 3 == 0 ? 0.25 : 1.0; };
    const auto target = [&](int64_t i) { return static_cast<double>((i * 31 + vocabulary - 1) % vocabulary); };
    const Twin tokens = twin(cpu->filled({kTokens}, target, DType::I32));
    const Twin weights = twin(cpu->filled({kTokens}, weight, DType::F32));
    const Tensor logits = cpu->random({kTokens, vocabulary}, size, DType::F32);
    return {logits, {tokens.cpu, weights.cpu, 0, vocabulary}, {tokens.gpu, weights.gpu, 0, vocabulary}};
  }

  // Between numbers of a vocabulary and those of its columns [begin, end).
  Tensor columns(const Tensor& whole, int64_t begin, int64_t end) {
    const Tensor part = cpu->zeros({whole.rows(), end - begin}, whole.dtype);
    for (int64_t t = 0; t < whole.rows(); ++t)
      for (int64_t i = begin; i < end; ++i) set(part, t * part.cols() + i - begin, get(whole, t * whole.cols() + i));
    return part;
  }
  static void put_columns(const Tensor& part, int64_t begin, const Tensor& whole) {
    for (int64_t t = 0; t < whole.rows(); ++t)
      for (int64_t i = 0; i < part.cols(); ++i)
        set(whole, t * whole.cols() + begin + i, get(part, t * part.cols() + i));
  }

  struct Result {
    Tensor nll, dlogits;  // on the CPU
  };
  Result undivided(const Rows& in) {
    const Tensor nll = zeros({kTokens}, DType::F32).gpu, dlogits = random(in.logits.shape).gpu;
    cuda::cross_entropy_backward(g(), twin(in.logits).gpu, in.gpu, kScale, nll, dlogits);
    return {down(nll), down(dlogits)};
  }
  Result divided(const Rows& in, const std::vector<int64_t>& begins) {
    const auto parts = static_cast<int64_t>(begins.size());
    const Tensor sums = random({parts, kTokens, kRowSums}, 1, DType::F32).gpu, nll = zeros({kTokens}, DType::F32).gpu;
    std::vector<Tensor> logits;
    std::vector<Targets> targets(begins.size(), in.gpu);
    for (size_t i = 0; i < begins.size(); ++i) {
      const int64_t end = i + 1 < begins.size() ? begins[i + 1] : in.logits.cols(), rank = static_cast<int64_t>(i);
      targets[i].first = begins[i];
      logits.push_back(twin(columns(in.logits, begins[i], end)).gpu);
      const Tensor own = sums.view({parts, kTokens * kRowSums}).row_range(rank, rank + 1).view({kTokens, kRowSums});
      cuda::sum_exponentials(g(), logits[i], targets[i], own);
    }
    cuda::cross_entropy_of_sums(g(), sums, in.gpu, nll);
    const Tensor whole = cpu->zeros(in.logits.shape);
    for (size_t i = 0; i < begins.size(); ++i) {
      const Tensor dlogits = random(logits[i].shape).gpu;  // not zeros, which would hide what is not written
      cuda::cross_entropy_gradient(g(), sums, logits[i], targets[i], kScale, dlogits);
      put_columns(down(dlogits), begins[i], whole);
    }
    return {down(nll), whole};
  }

  // Logits are the same, so nll differs by the sums of exponentials alone.
  static void expect_same(const Result& got, const Values& nll, const Values& dlogits) {
    expect_close(got.nll, nll, 2e-6, 4e-6, "nll");
    expect_close_as(got.dlogits, dlogits, 2, "dlogits");  // neighbours in bf16 at worst
  }
  void compare(int64_t vocabulary, const std::vector<int64_t>& begins, double size = 1) {
    SCOPED_TRACE(fmt::format("{} from {} on, logits near {}", vocabulary, fmt::join(begins, ", "), size));
    const Rows in = make(vocabulary, size);
    const Result got = divided(in, begins), one = undivided(in);
    expect_same(got, values(one.nll), values(one.dlogits));
    const Tensor nll = cpu->zeros({kTokens}, DType::F32);
    cpu::cross_entropy_backward(in.logits, in.cpu, kScale, c().compute() == DType::BF16, nll);
    expect_same(got, values(nll), values(in.logits));
  }
};

TEST_F(CudaDividedCrossEntropy, PartsOfAnyLength) {
  for (const DType compute : {DType::BF16, DType::F32}) {
    start(compute);
    compare(2, {0, 1});
    compare(257, {0, 128});
    compare(257, {0, 1});
    compare(257, {0, 85, 171});
    compare(1000, {0, 504});  // whole groups of eight
    compare(16391, {0, 2048, 4097, 6146, 8195, 10244, 12293, 14342});
    compare(40000, {0, 39000});
  }
}

TEST_F(CudaDividedCrossEntropy, HugeLogits) {
  for (const DType compute : {DType::BF16, DType::F32}) {
    start(compute);
    for (const double size : {30.0, 3000.0}) compare(257, {0, 85, 171}, size);
  }
}

TEST_F(CudaDividedCrossEntropy, TokensOfWeightZeroAreZeros) {
  const Result got = divided(make(257, 1), {0, 128});
  for (int64_t t = 0; t < kTokens; t += 5) {
    EXPECT_EQ(get(got.nll, t), 0.0);
    for (int64_t i = 0; i < 257; ++i) ASSERT_EQ(get(got.dlogits, t * 257 + i), 0.0);
  }
}

TEST_F(CudaDividedCrossEntropy, DamageOfOnePartReachesAll) {
  const Rows in = make(257, 1);
  set(in.logits, 1 * 257 + 200, std::nan(""));
  const Result got = divided(in, {0, 128});
  EXPECT_TRUE(std::isnan(get(got.nll, 1)));
  EXPECT_FALSE(std::isnan(get(got.nll, 2)));
  for (int64_t i = 0; i < 257; ++i) {
    ASSERT_TRUE(std::isnan(get(got.dlogits, 1 * 257 + i)));
    ASSERT_FALSE(std::isnan(get(got.dlogits, 2 * 257 + i)));
  }
}

}  // namespace
}  // namespace agoq::ops::test
