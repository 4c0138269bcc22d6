#include "ops/mlp/swiglu.h"

#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

struct Case {
  int64_t rows, width, segment;
};
// Short blocks, groups of fewer than eight, rows that no vector access fits, and a layer's.
const std::vector<Case> kCases = {{1, 1, 1}, {3, 7, 7}, {5, 520, 65}, {9, 344, 43}, {21, 2752, 344}, {300, 4096, 512}};
const std::vector<Codec> kCodecs = {Codec::Fp4, Codec::Nf4,  Codec::Fp5, Codec::Fp6,
                                    Codec::Fp8, Codec::Bf16, Codec::Fp32};

class CudaSwiglu : public CudaTest {
 protected:
  // Forward on both, keeping gate_up and h.
  void forward(const Case& s, Codec codec, Codec codec_h) {
    const Twin gate_up = random({s.rows, 2 * s.width}, 2);
    const QuantizedTwin keep = kept(codec, s.rows, RowBlocks(2 * s.width, s.segment));
    const QuantizedTwin keep_h = kept(codec_h, s.rows, RowBlocks(s.width, s.segment));
    const Tensor want = swiglu(c(), gate_up.cpu, keep.cpu, keep_h.cpu);
    const Tensor got = swiglu(g(), gate_up.gpu, keep.gpu, keep_h.gpu);
    expect_near(want, got, 2, "h");
    expect_same_bits(keep.cpu, keep.gpu, "codes of gate_up");
    if (!keep_h.cpu.kept()) return;
    codec::encode(c(), down(got), keep_h.cpu);  // h itself may differ by a rounding
    expect_same_bits(keep_h.cpu, keep_h.gpu, "codes of h");
  }
  void backward(const Case& s, Codec codec, Codec codec_h) {
    const Twin dh = random({s.rows, s.width});
    const QuantizedTwin gate_up =
        encoded(cpu->random({s.rows, 2 * s.width}, 2), codec, RowBlocks(2 * s.width, s.segment));
    QuantizedTwin h;
    if (codec_h != Codec::None) h = encoded(cpu->random({s.rows, s.width}), codec_h, RowBlocks(s.width, s.segment));
    const SwigluGradients want = swiglu_backward(c(), dh.cpu, gate_up.cpu, h.cpu);
    const SwigluGradients got = swiglu_backward(g(), dh.gpu, gate_up.gpu, h.gpu);
    expect_near(want.d_gate_up, got.d_gate_up, 2, "d_gate_up");
    expect_near(want.h, got.h, 2, "h");
  }
  template <class Body>
  void in_both_types(Body&& body) {
    for (const DType compute : {DType::BF16, DType::F32}) {
      start(compute);
      body();
    }
  }
};

TEST_F(CudaSwiglu, ForwardOfEveryShape) {
  for (const Case& s : kCases)
    in_both_types([&] {
      forward(s, Codec::Fp4, Codec::None);
      forward(s, Codec::Fp4, Codec::Fp4);
      forward(s, Codec::None, Codec::None);
    });
}

TEST_F(CudaSwiglu, ForwardInEveryCodec) {
  for (const Codec codec : kCodecs)
    in_both_types([&] {
      forward({5, 520, 65}, codec, codec);
      forward({7, 1024, 128}, codec, Codec::Fp8);
      forward({7, 1024, 128}, Codec::None, codec);
    });
}

TEST_F(CudaSwiglu, BackwardOfEveryShape) {
  for (const Case& s : kCases) in_both_types([&] { backward(s, Codec::Fp4, Codec::None); });
}

TEST_F(CudaSwiglu, BackwardInEveryCodec) {
  for (const Codec codec : kCodecs)
    in_both_types([&] {
      backward({5, 520, 65}, codec, Codec::None);
      backward({7, 1024, 128}, codec, codec);
      backward({7, 1024, 128}, codec, Codec::Fp8);
    });
}

TEST_F(CudaSwiglu, LargeGatesSaturateAndNanPasses) {
  start(DType::F32);
  const std::vector<double> gates = {200, -200, 88.9, -88.9, 1e30, -1e30, std::nan(""), 1};
  const int64_t n = static_cast<int64_t>(gates.size());
  const Twin gate_up = twin(cpu->filled(
      {1, 2 * n}, [&](int64_t i) { return i < n ? gates[static_cast<size_t>(i)] : 2; }, DType::F32));
  const Values h = values(down(swiglu(g(), gate_up.gpu)));
  expect_close(Values(h.begin(), h.begin() + 6), {400, 0, 177.8, 0, 2e30, 0}, 1e-6, 1e-30);
  EXPECT_TRUE(std::isnan(h[6]));
}

TEST_F(CudaSwiglu, PlannedBytesAreHeld) {
  expect_planned_peak([](Context& ctx) {
    const auto gate_up = codec::allocate(ctx.arena(), Owner::Operands, Codec::Fp4, 10, RowBlocks(600, 150));
    const auto h = codec::allocate(ctx.arena(), Owner::Operands, Codec::Fp8, 10, RowBlocks(300, 150));
    const Tensor x = ctx.arena().allocate(Owner::Operands, ctx.compute(), {10, 600});
    swiglu_backward(ctx, swiglu(ctx, x, gate_up, h), gate_up, h);
  });
}

}  // namespace
}  // namespace agoq::ops::test
