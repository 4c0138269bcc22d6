#include "ops/norm/layer_norm.h"

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
const std::vector<Case> kCases = {{1, RowBlocks(2)},     {3, RowBlocks(7)},       {5, RowBlocks(8 * 37, 37)},
                                  {700, RowBlocks(130)}, {1300, RowBlocks(2048)}, {9, RowBlocks(5121)},
                                  {17, RowBlocks(8192)}};
const std::vector<Codec> kCodecs = {Codec::None, Codec::Fp4, Codec::Fp6, Codec::Int8, Codec::Bf16, Codec::Fp32};

class CudaLayerNorm : public CudaTest {
 protected:
  // Rows that are not around zero, so that the mean matters.
  Tensor shifted(Shape shape) {
    const Tensor noise = cpu->random(shape, 2);
    return cpu->filled(
        shape, [&](int64_t i) { return get(noise, i) + static_cast<double>(i / shape[1] % 5); }, c().compute());
  }
  void forward(const Case& s, Codec codec) {
    const Twin x = twin(shifted({s.rows, s.row.cols})), rstd = zeros({s.rows}, DType::F32);
    const QuantizedTwin keep = kept(codec, s.rows, s.row);
    const Tensor want = layer_norm(c(), x.cpu, kEps, keep.cpu, rstd.cpu);
    const Tensor got = layer_norm(g(), x.gpu, kEps, keep.gpu, rstd.gpu);
    expect_close_as(down(got), values(want), 2, "n", largest(values(want)));
    expect_near(rstd.cpu, rstd.gpu, 1, "rstd");
    expect_same_bits(keep.cpu, keep.gpu, "codes of x");
    if (!keep.cpu.kept()) return;
    const Tensor again = recompute_layer_norm(g(), keep.gpu, rstd.gpu);
    const Tensor want_again = recompute_layer_norm(c(), keep.cpu, rstd.cpu);
    expect_close_as(down(again), values(want_again), 2, "n again", largest(values(want)));
    if (codec == Codec::Fp32 || (codec == Codec::Bf16 && c().compute() == DType::BF16))
      expect_same_bits(down(got), again, "n again, of exact numbers");
  }
  void backward(const Case& s, Codec codec, bool with_residual, bool in_place) {
    const Twin dn = random({s.rows, s.row.cols});
    const QuantizedTwin x = encoded(shifted({s.rows, s.row.cols}), codec, s.row);
    const Twin rstd = twin(cpu->filled(
        {s.rows}, [](int64_t t) { return 0.3 + 0.01 * static_cast<double>(t % 30); }, DType::F32));
    const Twin residual = with_residual ? random({s.rows, s.row.cols}) : Twin{};
    const Twin dx = in_place ? residual : zeros({s.rows, s.row.cols}, c().compute());
    layer_norm_backward_into(c(), dn.cpu, x.cpu, rstd.cpu, residual.cpu, dx.cpu);
    layer_norm_backward_into(g(), dn.gpu, x.gpu, rstd.gpu, residual.gpu, dx.gpu);
    expect_close_as(down(dx.gpu), values(dx.cpu), 2, "dx", largest(values(dn.cpu)));
  }
  template <class Body>
  void in_both_types(Body&& body) {
    for (const DType compute : {DType::BF16, DType::F32}) {
      start(compute);
      body();
    }
  }
};

TEST_F(CudaLayerNorm, OfEveryShape) {
  for (const Case& s : kCases)
    in_both_types([&] {
      forward(s, Codec::Fp4);
      backward(s, Codec::Fp4, true, true);
      backward(s, Codec::Bf16, false, false);
    });
}

TEST_F(CudaLayerNorm, InEveryCodec) {
  for (const Codec codec : kCodecs)
    in_both_types([&] {
      forward({40, RowBlocks(1024)}, codec);
      if (codec != Codec::None) backward({40, RowBlocks(1024)}, codec, true, false);
    });
}

TEST_F(CudaLayerNorm, PlansItsPeak) {
  expect_planned_peak([&](Context& ctx) {
    const Tensor x = ctx.empty({100, 1024}), rstd = ctx.empty(DType::F32, {100});
    const codec::Quantized keep = codec::push(ctx, Codec::Fp4, 100, RowBlocks(1024));
    const Tensor n = layer_norm(ctx, x, kEps, keep, rstd);
    recompute_layer_norm(ctx, keep, rstd);
    layer_norm_backward_into(ctx, n, keep, rstd, x, x);
  });
}

}  // namespace
}  // namespace agoq::ops::test
