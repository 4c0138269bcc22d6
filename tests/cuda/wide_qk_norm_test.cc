#include "ops/norm/wide_qk_norm.h"

#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

using codec::RowBlocks;

constexpr float kEps = 1e-6f;

struct Case {
  int64_t tokens;
  Heads heads;
};
// One number, rows that no access of 16 bytes fits, layers' rows, more rows than CTAs.
const std::vector<Case> kCases = {{1, {1, 1, 1}},   {3, {4, 2, 7}},     {40, {6, 2, 64}},  {700, {16, 16, 128}},
                                  {33, {5, 1, 72}}, {21, {40, 8, 128}}, {5000, {2, 1, 64}}};

class CudaWideQkNorm : public CudaTest {
 protected:
  Twin copy_of(const Twin& x) {
    return twin(cpu->filled(
        x.cpu.shape, [&](int64_t i) { return get(x.cpu, i); }, c().compute()));
  }
  void forward(const Case& s) {
    const Twin qkv = random({s.tokens, s.heads.cols()}, 2), before = copy_of(qkv);
    const Twin wq = random({s.heads.q_cols()}), wk = random({s.heads.kv_cols()});
    const Twin rstd = zeros({s.tokens, 2}, DType::F32);
    wide_qk_norm(c(), qkv.cpu, s.heads, wq.cpu, wk.cpu, kEps, rstd.cpu);
    wide_qk_norm(g(), qkv.gpu, s.heads, wq.gpu, wk.gpu, kEps, rstd.gpu);
    expect_near(qkv.cpu, qkv.gpu, 2, "qkv");
    expect_near(rstd.cpu, rstd.gpu, 1, "rstd");
    recompute_wide_qk_norm(g(), before.gpu, s.heads, wq.gpu, wk.gpu, rstd.gpu);
    expect_same_bits(down(qkv.gpu), before.gpu, "qkv again");
  }
  void backward(const Case& s) {
    const Twin dqkv = random({s.tokens, s.heads.cols()}), qkv = random({s.tokens, s.heads.cols()}, 2);
    const Twin wq = random({s.heads.q_cols()}), wk = random({s.heads.kv_cols()});
    const Twin rstd = twin(cpu->filled(
        {s.tokens, 2}, [](int64_t t) { return 0.3 + 0.01 * static_cast<double>(t % 30); }, DType::F32));
    const GradTwin dwq = grad(1, RowBlocks(s.heads.q_cols())), dwk = grad(1, RowBlocks(s.heads.kv_cols()));
    wide_qk_norm_backward(c(), dqkv.cpu, qkv.cpu, s.heads, wq.cpu, wk.cpu, rstd.cpu, dwq.cpu, dwk.cpu);
    wide_qk_norm_backward(g(), dqkv.gpu, qkv.gpu, s.heads, wq.gpu, wk.gpu, rstd.gpu, dwq.gpu, dwk.gpu);
    expect_near(dqkv.cpu, dqkv.gpu, 2, "dqkv");
    expect_relative(dwq.cpu.data.plain(), dwq.gpu.data.plain(), 1e-5, "dwq");
    expect_relative(dwk.cpu.data.plain(), dwk.gpu.data.plain(), 1e-5, "dwk");
  }
};

TEST_F(CudaWideQkNorm, AgreesWithTheCpu) {
  for (const Case& s : kCases)
    for (const DType compute : {DType::BF16, DType::F32}) {
      start(compute);
      forward(s);
      backward(s);
    }
}

TEST_F(CudaWideQkNorm, PlansItsPeak) {
  for (const int64_t tokens : {3, 4000})
    expect_planned_peak([&](Context& ctx) {
      const Heads heads{8, 2, 128};
      const Tensor qkv = ctx.empty({tokens, heads.cols()}), rstd = ctx.empty(DType::F32, {tokens, 2});
      const Tensor wq = ctx.empty({heads.q_cols()}), wk = ctx.empty({heads.kv_cols()});
      const MainGrad dwq{codec::push(ctx, codec::Codec::Fp32, 1, RowBlocks(heads.q_cols())), 1, true};
      const MainGrad dwk{codec::push(ctx, codec::Codec::Fp32, 1, RowBlocks(heads.kv_cols())), 1, true};
      wide_qk_norm(ctx, qkv, heads, wq, wk, kEps, rstd);
      recompute_wide_qk_norm(ctx, qkv, heads, wq, wk, rstd);
      wide_qk_norm_backward(ctx, qkv, qkv, heads, wq, wk, rstd, dwq, dwk);
    });
}

}  // namespace
}  // namespace agoq::ops::test
