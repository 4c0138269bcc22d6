#include "ops/attention/attention.h"

#include <limits>
#include <numeric>

#include "cuda/pair.h"
#include "ops/attention/attention_check.h"
#include "ops/attention/attention_cuda.h"
#include "ops/attention/attention_runs.h"

namespace agoq::ops::test {
namespace {

struct Batch {
  Heads heads;
  int64_t sequence_length = 0;
  std::vector<int64_t> documents;  // their lengths
  int64_t window = 0;
  int64_t tokens() const { return std::accumulate(documents.begin(), documents.end(), int64_t{0}); }
  int64_t longest() const { return *std::max_element(documents.begin(), documents.end()); }
  bool dense() const {
    return longest() == sequence_length && static_cast<int64_t>(documents.size()) * sequence_length == tokens();
  }
  AttentionSpec spec() const { return {heads, window}; }
};

const Heads kThree{6, 2, 64}, kLlama{32, 8, 128}, kEqual{4, 4, 64}, kOdd{6, 2, 20};

class CudaAttention : public CudaTest {
 protected:
  // Tells both contexts; the GPU's knows the documents themselves only if `known`.
  void use(const Batch& b, bool known = true) {
    std::vector<int32_t> positions, starts, offsets;
    for (const int64_t length : b.documents) {
      offsets.push_back(static_cast<int32_t>(starts.size()));
      starts.insert(starts.end(), static_cast<size_t>(length), offsets.back());
      for (int64_t i = 0; i < length; ++i) positions.push_back(static_cast<int32_t>(i));
    }
    offsets.push_back(static_cast<int32_t>(starts.size()));
    documents(positions, starts);
    g().documents = {};
    if (!known) return;
    g().documents = {b.sequence_length, static_cast<int64_t>(b.documents.size()), b.longest(),
                     arena->allocate(Owner::Operands, DType::I32, {b.tokens() + 1})};
    const Tensor column = g().documents.offsets.view({b.tokens() + 1, 1});
    upload(g(), offsets.data(), column.row_range(0, static_cast<int64_t>(offsets.size())));
  }

  struct Results {
    Tensor o, lse, dqkv;
  };
  Results run(Context& ctx, const Batch& b, const Tensor& qkv, const Tensor& d_o) {
    Results r;
    r.lse = ctx.arena().allocate(Owner::Operands, DType::F32, {b.heads.query, b.tokens()});
    r.o = attention(ctx, qkv, b.spec(), r.lse);
    r.dqkv = attention_backward(ctx, d_o, qkv, r.o, r.lse, b.spec());
    return r;
  }

  static Values columns(const Values& x, int64_t cols, int64_t begin, int64_t end) {
    Values part;
    for (size_t row = 0; row < x.size(); row += static_cast<size_t>(cols))
      part.insert(part.end(), x.begin() + static_cast<int64_t>(row) + begin,
                  x.begin() + static_cast<int64_t>(row) + end);
    return part;
  }
  // q, k and v each for itself, since their gradients differ in size.
  void expect_same_gradient(const Heads& heads, const Values& want, const Values& got, double bound) {
    const std::array<int64_t, 4> borders = {0, heads.k_begin(), heads.v_begin(), heads.cols()};
    const std::array<const char*, 3> names = {"dq", "dk", "dv"};
    for (size_t i = 0; i < 3; ++i)
      expect_relative(columns(want, heads.cols(), borders[i], borders[i + 1]),
                      columns(got, heads.cols(), borders[i], borders[i + 1]), bound, names[i]);
  }
  // [Hq, T], whoever made it.
  Values lse_of(const Tensor& lse, const Batch& b, bool by_cudnn) {
    const Values x = values(down(lse));
    Values out(x.size());
    const int64_t tokens = b.tokens(), heads = b.heads.query, length = b.sequence_length;
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t dense = (t / length * heads + h) * length + t % length, packed = t * heads + h;
        const int64_t from = !by_cudnn ? h * tokens + t : b.dense() ? dense : packed;
        out[static_cast<size_t>(h * tokens + t)] = x[static_cast<size_t>(from)];
      }
    return out;
  }

  // The GPU beside the CPU. bf16 weights of the softmax and of its gradient are rounded before they meet v, k and q.
  void compare(const Batch& b, bool by_cudnn, bool known = true) {
    use(b, known);
    const int64_t calls = use_of_cudnn().calls;
    const Twin qkv = random({b.tokens(), b.heads.cols()}), d_o = random({b.tokens(), b.heads.q_cols()});
    const Results want = run(c(), b, qkv.cpu, d_o.cpu), got = run(g(), b, qkv.gpu, d_o.gpu);
    const bool exact = c().compute() == DType::F32;
    expect_relative(want.o, got.o, exact ? 2e-6 : 0x1p-8 * 1.5, "o");
    expect_relative(values(want.lse), lse_of(got.lse, b, by_cudnn), exact ? 1e-6 : 1e-5, "lse");
    expect_same_gradient(b.heads, values(want.dqkv), values(down(got.dqkv)), exact ? 1e-5 : 0x1p-6);
    EXPECT_EQ(use_of_cudnn().calls > calls, by_cudnn);
  }
  static cuda::AttentionUse use_of_cudnn() { return cuda::attention_use(*the_gpu()); }

  // cuDNN beside the generic kernels, which `compare` holds against the CPU: for sizes that are too much for that.
  void compare_on_gpu(const Batch& b) {
    const Twin qkv = random({b.tokens(), b.heads.cols()}), d_o = random({b.tokens(), b.heads.q_cols()});
    use(b, false);
    const Results want = run(g(), b, qkv.gpu, d_o.gpu);
    use(b);
    const Results got = run(g(), b, qkv.gpu, d_o.gpu);
    for (const int64_t begin : {int64_t{0}, b.tokens() / 2, b.tokens() - 500}) {
      const auto rows = [&](const Tensor& t) { return values(down(t.row_range(begin, begin + 500))); };
      expect_relative(rows(want.o), rows(got.o), 0x1p-8 * 1.5, "o");
      expect_same_gradient(b.heads, rows(want.dqkv), rows(got.dqkv), 0x1p-6);
    }
  }
};

TEST_F(CudaAttention, SequencesOfOneDocument) {
  compare({kThree, 256, {256, 256, 256}}, true);
  compare({kLlama, 512, {512, 512}}, true);
  compare({kEqual, 384, {384}}, true);
  compare({kThree, 203, {203, 203}}, true);  // ends within a tile
}

TEST_F(CudaAttention, SlidingWindow) {
  compare({kThree, 512, {512, 512}, 100}, true);
  compare({kLlama, 300, {300}, 2}, true);
  compare({kEqual, 256, {256}, 1000}, true);  // wider than the sequence
}

TEST_F(CudaAttention, PackedDocuments) {
  compare({kThree, 512, {100, 412, 512, 1, 2, 509}}, true);
  compare({kLlama, 512, {130, 382}}, true);
  compare({kEqual, 1024, {1000, 24}}, true);
}

TEST_F(CudaAttention, PackedDocumentsWithAWindow) {
  compare({kThree, 512, {100, 412, 512}, 64}, true);
}

TEST_F(CudaAttention, ABatchShorterThanASequence) {
  compare({kThree, 512, {300}}, true);
}

TEST_F(CudaAttention, PlansServeAllBatchesOfAKind) {
  compare({{2, 1, 64}, 1024, {500, 524}}, true);
  const int64_t plans = use_of_cudnn().plans, calls = use_of_cudnn().calls;
  const Batch other{{2, 1, 64}, 1024, {300, 724}};
  use(other);
  const Twin qkv = random({1024, other.heads.cols()}), d_o = random({1024, other.heads.q_cols()});
  run(g(), other, qkv.gpu, d_o.gpu);
  EXPECT_EQ(use_of_cudnn().plans, plans);
  EXPECT_EQ(use_of_cudnn().calls, calls + 2);  // forward and backward
}

TEST_F(CudaAttention, GenericKernelsInFp32) {
  start(DType::F32);
  compare({kOdd, 203, {203}}, false);
  compare({kOdd, 190, {1, 70, 2, 64, 1, 1, 51}}, false);
  compare({kThree, 300, {120, 180}, 37}, false);
  compare({kLlama, 150, {150}}, false);
  compare({{4, 1, 200}, 90, {90}, 7}, false);
  compare({{2, 2, 256}, 33, {32, 1}}, false);
}

TEST_F(CudaAttention, GenericKernelsInBf16) {
  compare({kOdd, 203, {60, 143}}, false);          // cuDNN wants D to be a multiple of 8
  compare({kThree, 256, {256}, 0}, false, false);  // documents that the host does not know
  compare({kLlama, 200, {90, 110}, 50}, false, false);
}

TEST_F(CudaAttention, LargeBatchesAreCutIntoCalls) {
  start(DType::BF16, size_t{6} << 30);
  const Batch b{kLlama, 8192, {8192, 8192, 8192}};
  ASSERT_LT(dense_run(b.heads, 3, 8192, false).sequences, 3);
  compare_on_gpu(b);
}

TEST_F(CudaAttention, LargePackedBatchesAreCutIntoCalls) {
  start(DType::BF16, size_t{6} << 30);
  const Batch b{kLlama, 8192, {5000, 3192, 8192, 100, 8092}};
  ASSERT_LT(packed_run(b.heads, b.tokens()).kv_heads, b.heads.kv);
  compare_on_gpu(b);
}

TEST_F(CudaAttention, DeterministicRunsGiveTheSameBits) {
  start(DType::BF16, size_t{4} << 30);
  g().deterministic = true;
  for (const Batch& b : {Batch{kLlama, 4096, {4096, 4096}}, Batch{kThree, 512, {200, 312}}}) {
    use(b);
    const Twin qkv = random({b.tokens(), b.heads.cols()}), d_o = random({b.tokens(), b.heads.q_cols()});
    const Tensor first = down(run(g(), b, qkv.gpu, d_o.gpu).dqkv);
    for (int i = 0; i < 3; ++i) expect_same_bits(first, run(g(), b, qkv.gpu, d_o.gpu).dqkv, "again");
  }
}

TEST_F(CudaAttention, DeterministicGradientsAreRight) {
  g().deterministic = true;
  compare({kThree, 256, {256, 256}}, true);
  compare({kLlama, 512, {130, 382}}, true);  // forward by cuDNN, backward by the generic kernels, from its lse
  start(DType::BF16, size_t{3} << 30);
  g().deterministic = true;
  ASSERT_LT(dense_run(kLlama, 1, 8192, true).kv_heads, kLlama.kv);
  compare_on_gpu({kLlama, 8192, {8192}});
}

TEST_F(CudaAttention, EvaluationNeedsNoLse) {
  const Batch b{kThree, 256, {256}};
  use(b);
  const Twin qkv = random({256, b.heads.cols()});
  expect_relative(attention(c(), qkv.cpu, b.spec()), attention(g(), qkv.gpu, b.spec()), 0x1p-8 * 1.5, "dense");
  const Batch packed{kThree, 256, {50, 206}};
  use(packed);
  expect_relative(attention(c(), qkv.cpu, b.spec()), attention(g(), qkv.gpu, b.spec()), 0x1p-8 * 1.5, "packed");
}

// What a run checks before step 0, of the kinds of heads there are.
TEST_F(CudaAttention, TheLibraryPassesTheTestBeforeStepZero) {
  for (const AttentionSpec& spec : {AttentionSpec{kLlama, 0}, AttentionSpec{kLlama, 4096}, AttentionSpec{kEqual, 0}}) {
    const int64_t calls = use_of_cudnn().calls;
    const std::vector<AttentionAnswer> answers = check_attention(*the_gpu(), spec, {.packed = true});
    // o, o without lse, dq, dk and dv of dense and of packed batches; once more with a window.
    ASSERT_EQ(answers.size(), spec.window > 0 ? 20u : 10u);
    for (const AttentionAnswer& a : answers) EXPECT_TRUE(a.right()) << a.path << " " << a.result << ": " << a.error;
    EXPECT_GE(use_of_cudnn().calls, calls + (spec.window > 0 ? 12 : 6)) << "the library was not asked";
  }
  EXPECT_EQ(check_attention(*the_gpu(), {kLlama, 0}, {.backward = false}).size(), 2u);
  EXPECT_NO_THROW(require_right_attention(*the_gpu(), {kLlama, 0}, {.packed = true, .deterministic = true}));
}

TEST_F(CudaAttention, AnAnswerThatIsNoNumberIsWrong) {
  EXPECT_FALSE((AttentionAnswer{"dense", "dk", std::numeric_limits<double>::quiet_NaN(), 0.1}.right()));
  EXPECT_FALSE((AttentionAnswer{"dense", "dk", 1.05, 0x1p-6}.right()));
}

TEST_F(CudaAttention, TooWideHeadsAreAClearError) {
  start(DType::F32);
  const Batch b{{1, 1, 264}, 8, {8}};
  use(b);
  EXPECT_THROW(attention(g(), random({8, b.heads.cols()}).gpu, b.spec()), Error);
}

TEST_F(CudaAttention, DryRunPlansTheSamePeak) {
  for (const DType compute : {DType::BF16, DType::F32})
    for (const bool deterministic : {false, true}) {
      start(compute, size_t{1} << 30);
      expect_planned_peak([&](Context& ctx) {
        const Batch b{kThree, 128, {128, 128}};
        ctx.documents.sequence_length = b.sequence_length;
        ctx.deterministic = deterministic;
        ctx.document_start = ctx.arena().allocate(Owner::Operands, DType::I32, {b.tokens()});
        const auto numbers = [&](int64_t cols) {
          return ctx.arena().allocate(Owner::Operands, ctx.compute(), {b.tokens(), cols});
        };
        run(ctx, b, numbers(b.heads.cols()), numbers(b.heads.q_cols()));
      });
    }
}

}  // namespace
}  // namespace agoq::ops::test
