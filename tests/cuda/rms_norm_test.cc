#include "ops/norm/rms_norm.h"

#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

constexpr float kEps = 1e-5f;

struct Case {
  int64_t rows;
  RowBlocks row;
};
// One number, groups of fewer than eight, short blocks, whole blocks that fill no warp, more rows than CTAs, layers'
// rows, long ones, and one longer than registers hold.
const std::vector<Case> kCases = {{1, RowBlocks(1)},           {3, RowBlocks(7)},           {5, RowBlocks(8 * 37, 37)},
                                  {700, RowBlocks(130)},       {2500, RowBlocks(64)},       {9, RowBlocks(128)},
                                  {5000, RowBlocks(384, 128)}, {1300, RowBlocks(4096)},     {270, RowBlocks(5120)},
                                  {9, RowBlocks(5121)},        {9, RowBlocks(6144)},        {17, RowBlocks(8192)},
                                  {9, RowBlocks(12288)},       {4, RowBlocks(16384, 2048)}, {3, RowBlocks(16512)}};
const std::vector<Codec> kCodecs = {Codec::Fp4,  Codec::Nf4,  Codec::Int4, Codec::Fp5,  Codec::Fp6,         Codec::Fp8,
                                    Codec::Int8, Codec::Bf16, Codec::Fp32, Codec::Dyn8, Codec::Dyn8Unsigned};

class CudaRmsNorm : public CudaTest {
 protected:
  void forward(const Case& s, Codec codec, DType weights) {
    const Twin x = random({s.rows, s.row.cols}, 2), w = random({s.row.cols}, 1, weights);
    const Twin rstd = zeros({s.rows}, DType::F32);
    const QuantizedTwin keep = kept(codec, s.rows, s.row);
    const Tensor want = rms_norm(c(), x.cpu, w.cpu, kEps, keep.cpu, rstd.cpu);
    const Tensor got = rms_norm(g(), x.gpu, w.gpu, kEps, keep.gpu, rstd.gpu);
    expect_near(want, got, 2, "n");
    expect_near(rstd.cpu, rstd.gpu, 1, "rstd");
    expect_same_bits(keep.cpu, keep.gpu, "codes of x");
    if (!keep.cpu.kept()) return;
    expect_near(recompute_rms_norm(c(), keep.cpu, rstd.cpu, w.cpu), recompute_rms_norm(g(), keep.gpu, rstd.gpu, w.gpu),
                2, "n again");
  }

  // dw is a sum over the rows of products that are exact in fp32: it is off by roundings of fp32, whatever the codec.
  void backward(const Case& s, Codec codec, bool with_residual, bool in_place) {
    const Twin dn = random({s.rows, s.row.cols}), w = random({s.row.cols});
    const QuantizedTwin x = encoded(cpu->random({s.rows, s.row.cols}, 2), codec, s.row);
    const Twin rstd = twin(cpu->filled(
        {s.rows}, [](int64_t t) { return 0.3 + 0.01 * static_cast<double>(t % 30); }, DType::F32));
    const Twin residual = with_residual ? random({s.rows, s.row.cols}) : Twin{};
    const Twin dx = in_place ? residual : zeros({s.rows, s.row.cols}, c().compute());
    const GradTwin dw = grad(1, RowBlocks(s.row.cols));
    rms_norm_backward_into(c(), dn.cpu, x.cpu, rstd.cpu, w.cpu, residual.cpu, dx.cpu, dw.cpu);
    rms_norm_backward_into(g(), dn.gpu, x.gpu, rstd.gpu, w.gpu, residual.gpu, dx.gpu, dw.gpu);
    expect_near(dx.cpu, dx.gpu, 2, "dx");
    expect_relative(dw.cpu.data.plain(), dw.gpu.data.plain(), 1e-5, "dw");
  }

  template <class Body>
  void in_both_types(Body&& body) {
    for (const DType compute : {DType::BF16, DType::F32}) {
      start(compute);
      body();
    }
  }
};

TEST_F(CudaRmsNorm, ForwardOfEveryShape) {
  for (const Case& s : kCases)
    in_both_types([&] {
      forward(s, Codec::Fp4, c().compute());
      forward(s, Codec::None, DType::F32);
    });
}

TEST_F(CudaRmsNorm, ForwardInEveryCodec) {
  for (const Codec codec : kCodecs)
    in_both_types([&] {
      forward({5, RowBlocks(8 * 37, 37)}, codec, c().compute());
      forward({40, RowBlocks(1024)}, codec, c().compute());
    });
}

TEST_F(CudaRmsNorm, BackwardOfEveryShape) {
  for (const Case& s : kCases)
    in_both_types([&] {
      backward(s, Codec::Fp4, true, true);
      backward(s, Codec::Int8, true, false);
      backward(s, Codec::Bf16, false, false);
    });
}

TEST_F(CudaRmsNorm, BackwardInEveryCodec) {
  for (const Codec codec : kCodecs)
    in_both_types([&] {
      backward({5, RowBlocks(8 * 37, 37)}, codec, true, true);
      backward({40, RowBlocks(1024)}, codec, false, false);
    });
}

TEST_F(CudaRmsNorm, BackwardIsDeterministic) {
  const Twin dn = random({1000, 512}), w = random({512}), rstd = zeros({1000}, DType::F32);
  const QuantizedTwin x = encoded(cpu->random({1000, 512}), Codec::Fp4, RowBlocks(512));
  const GradTwin first = grad(1, RowBlocks(512)), second = grad(1, RowBlocks(512));
  for (const GradTwin& dw : {first, second}) rms_norm_backward(g(), dn.gpu, x.gpu, rstd.gpu, w.gpu, {}, dw.gpu);
  expect_same_bits(down(first.gpu.data), second.gpu.data, "dw");
}

TEST_F(CudaRmsNorm, NanOfARowShowsInItAlone) {
  const Tensor x = cpu->random({3, 256});
  set(x, 256 + 17, std::nan(""));
  const Twin both = twin(x), w = random({256});
  const Tensor n = down(rms_norm(g(), both.gpu, w.gpu, kEps));
  for (int64_t i = 0; i < n.count(); ++i) ASSERT_EQ(std::isnan(get(n, i)), i / 256 == 1) << i;
}

TEST_F(CudaRmsNorm, PlansItsPeak) {
  for (const int64_t rows : {3, 4000})
    expect_planned_peak([&](Context& ctx) {
      const RowBlocks row(1024);
      const Tensor w = ctx.empty({row.cols}), x = ctx.empty({rows, row.cols}), rstd = ctx.empty(DType::F32, {rows});
      const codec::Quantized keep = codec::push(ctx, Codec::Fp4, rows, row);
      const MainGrad dw{codec::push(ctx, Codec::Fp32, 1, row), 1, true};
      const Tensor n = rms_norm(ctx, x, w, kEps, keep, rstd);
      rms_norm_backward(ctx, n, keep, rstd, w, x, dw);
    });
}

// --- heads ----------------------------------------------------------------------------------------------------------

struct HeadsCase {
  int64_t tokens;
  Heads heads;
};
const std::vector<HeadsCase> kHeadsCases = {{1, {1, 1, 1}},      {3, {4, 2, 7}},   {40, {6, 2, 64}},
                                            {700, {32, 8, 128}}, {33, {5, 1, 72}}, {21, {8, 4, 256}}};

class CudaQkNorm : public CudaTest {
 protected:
  void forward(const HeadsCase& s) {
    const int64_t normed = s.heads.query + s.heads.kv;
    const Twin qkv = random({s.tokens, s.heads.cols()}, 2), wq = random({s.heads.dim}), wk = random({s.heads.dim});
    const Twin before = twin(cpu->filled(
        {s.tokens, s.heads.cols()}, [&](int64_t i) { return get(qkv.cpu, i); }, c().compute()));
    const Twin rstd = zeros({s.tokens, normed}, DType::F32);
    qk_norm(c(), qkv.cpu, s.heads, wq.cpu, wk.cpu, kEps, rstd.cpu);
    qk_norm(g(), qkv.gpu, s.heads, wq.gpu, wk.gpu, kEps, rstd.gpu);
    expect_near(qkv.cpu, qkv.gpu, 2, "qkv");
    expect_near(rstd.cpu, rstd.gpu, 1, "rstd");
    recompute_qk_norm(g(), before.gpu, s.heads, wq.gpu, wk.gpu, rstd.gpu);
    expect_same_bits(down(qkv.gpu), before.gpu, "qkv again");
  }
  void backward(const HeadsCase& s) {
    const Twin dqkv = random({s.tokens, s.heads.cols()}), qkv = random({s.tokens, s.heads.cols()}, 2);
    const Twin wq = random({s.heads.dim}), wk = random({s.heads.dim});
    const Twin rstd = twin(cpu->filled(
        {s.tokens, s.heads.query + s.heads.kv}, [](int64_t t) { return 0.3 + 0.01 * static_cast<double>(t % 30); },
        DType::F32));
    const GradTwin dwq = grad(1, RowBlocks(s.heads.dim)), dwk = grad(1, RowBlocks(s.heads.dim));
    qk_norm_backward(c(), dqkv.cpu, qkv.cpu, s.heads, wq.cpu, wk.cpu, rstd.cpu, dwq.cpu, dwk.cpu);
    qk_norm_backward(g(), dqkv.gpu, qkv.gpu, s.heads, wq.gpu, wk.gpu, rstd.gpu, dwq.gpu, dwk.gpu);
    expect_near(dqkv.cpu, dqkv.gpu, 2, "dqkv");
    expect_relative(dwq.cpu.data.plain(), dwq.gpu.data.plain(), 1e-5, "dwq");
    expect_relative(dwk.cpu.data.plain(), dwk.gpu.data.plain(), 1e-5, "dwk");
  }
};

TEST_F(CudaQkNorm, AgreesWithTheCpu) {
  for (const HeadsCase& s : kHeadsCases)
    for (const DType compute : {DType::BF16, DType::F32}) {
      start(compute);
      forward(s);
      backward(s);
    }
}

TEST_F(CudaQkNorm, PlansItsPeak) {
  for (const int64_t tokens : {3, 4000})
    expect_planned_peak([&](Context& ctx) {
      const Heads heads{8, 2, 128};
      const Tensor qkv = ctx.empty({tokens, heads.cols()}), w = ctx.empty({heads.dim});
      const Tensor rstd = ctx.empty(DType::F32, {tokens, heads.query + heads.kv});
      const MainGrad dw{codec::push(ctx, Codec::Fp32, 1, RowBlocks(heads.dim)), 1, true};
      qk_norm(ctx, qkv, heads, w, w, kEps, rstd);
      recompute_qk_norm(ctx, qkv, heads, w, w, rstd);
      qk_norm_backward(ctx, qkv, qkv, heads, w, w, rstd, dw, dw);
    });
}

}  // namespace
}  // namespace agoq::ops::test
