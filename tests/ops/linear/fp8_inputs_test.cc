// Ops that write what products read in 8-bit floats: on any device the cast of the numbers that they would have made.
#include "ops/attention/rope.h"
#include "ops/linear/fp8.h"
#include "ops/mlp/swiglu.h"
#include "ops/norm/layer_norm.h"
#include "ops/norm/rms_norm.h"
#include "ops/support.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

constexpr OperandFormat kRows{DType::E4M3, Granularity::Row}, kWide{DType::E5M2, Granularity::Row};
constexpr OperandFormat kWhole{DType::E4M3, Granularity::Tensor}, kWideWhole{DType::E5M2, Granularity::Tensor};
constexpr Fp8Recipe kHybrid{kRows, kRows, kWide, kWideWhole, kWhole};
constexpr float kEps = 1e-5f;

struct Fp8Inputs : testing::TestWithParam<DType> {
  TestContext t{GetParam()};
  Context fp8 = t.ctx;
  void SetUp() override { fp8.fp8 = &kHybrid; }

  static void expect_same(const Operand& want, const Operand& got) {
    ASSERT_EQ(got.data.shape, want.data.shape);
    ASSERT_EQ(got.granularity, want.granularity);
    EXPECT_TRUE(std::equal(want.data.raw(), want.data.raw() + want.data.bytes(), got.data.raw())) << "codes";
    EXPECT_EQ(values(got.scale), values(want.scale));
  }
};
INSTANTIATE_TEST_SUITE_P(Compute, Fp8Inputs, testing::Values(DType::F32, DType::BF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(Fp8Inputs, NormsWriteWhatACastWould) {
  const Tensor x = t.random({9, 48}), w = t.random({48}), rstd = t.zeros({9}, DType::F32);
  const codec::Quantized keep = t.kept(Codec::Fp4, 9, RowBlocks(48));
  const Operand n = forward_input(fp8, 9, 48);
  rms_norm_into(fp8, x, w, kEps, keep, rstd, n);
  expect_same(to_fp8(t.ctx, rms_norm(t.ctx, x, w, kEps), kRows), n);
  expect_same(to_fp8_transposed(t.ctx, recompute_rms_norm(t.ctx, keep, rstd, w), kWhole),
              recompute_rms_norm_transposed(t.ctx, keep, rstd, w, kWhole));

  layer_norm_into(fp8, x, kEps, keep, rstd, n);
  expect_same(to_fp8(t.ctx, layer_norm(t.ctx, x, kEps), kRows), n);
  expect_same(to_fp8_transposed(t.ctx, recompute_layer_norm(t.ctx, keep, rstd), kWhole),
              recompute_layer_norm_transposed(t.ctx, keep, rstd, kWhole));
}

TEST_P(Fp8Inputs, NormBackwardWritesItsGradientTwice) {
  const Tensor dn = t.random({9, 48}), w = t.random({48}), residual = t.random({9, 48});
  const Tensor rstd = t.filled(
      {9}, [](int64_t) { return 0.5; }, DType::F32);
  const codec::Quantized x = t.kept(Codec::Fp8, 9, RowBlocks(48));
  codec::encode(t.ctx, t.random({9, 48}), x);
  const Tensor dx = t.zeros({9, 48}), alone = t.zeros({9, 48});
  const MainGrad dw = t.grad(1, 48), dw_alone = t.grad(1, 48);
  const Operand rows = gradient_input(fp8, 9, 48);
  rms_norm_backward_into(fp8, dn, x, rstd, w, residual, dx, dw, rows);
  rms_norm_backward_into(t.ctx, dn, x, rstd, w, residual, alone, dw_alone);
  EXPECT_EQ(values(dx), values(alone));
  EXPECT_EQ(values(dw.data.plain()), values(dw_alone.data.plain()));
  expect_same(to_fp8(t.ctx, alone, kWide), rows);

  layer_norm_backward_into(fp8, dn, x, rstd, residual, dx, rows);
  layer_norm_backward_into(t.ctx, dn, x, rstd, residual, alone);
  expect_same(to_fp8(t.ctx, alone, kWide), rows);
}

TEST_P(Fp8Inputs, SwigluWritesWhatACastWould) {
  const Tensor gate_up = t.random({9, 96}), dh = t.random({9, 48});
  const codec::Quantized keep = t.kept(Codec::Fp4, 9, RowBlocks(96, 48)), h_kept = t.kept(Codec::Fp8, 9, RowBlocks(48));
  const Operand h = forward_input(fp8, 9, 48);
  swiglu_into(fp8, gate_up, keep, {}, h);
  expect_same(to_fp8(t.ctx, swiglu(t.ctx, gate_up), kRows), h);

  const SwigluOperands got = swiglu_backward_operands(fp8, dh, keep);
  const SwigluGradients want = swiglu_backward(t.ctx, dh, keep);
  expect_same(to_fp8(t.ctx, want.d_gate_up, kWide), got.d_gate_up);
  expect_same(to_fp8_transposed(t.ctx, to_fp8_rows(t.ctx, want.h, DType::E4M3), kWhole), got.ht);

  // Where h is kept it is decoded, and its product casts it; without a recipe all are numbers.
  codec::encode(t.ctx, t.random({9, 48}), h_kept);
  const SwigluOperands decoded = swiglu_backward_operands(fp8, dh, keep, h_kept);
  EXPECT_EQ(values(decoded.ht.data), values(swiglu_backward(t.ctx, dh, keep, h_kept).h));
  EXPECT_EQ(decoded.ht.major, Major::MN);
  const SwigluOperands numbers = swiglu_backward_operands(t.ctx, dh, keep);
  EXPECT_EQ(values(numbers.d_gate_up.data), values(want.d_gate_up));
  EXPECT_EQ(values(numbers.ht.data), values(want.h));
}

// Twice the width needs no padding, but the width itself does: h stays numbers.
TEST_P(Fp8Inputs, AWidthThatNeedsPaddingIsTaken) {
  const Tensor dh = t.random({9, 24});
  const codec::Quantized keep = t.kept(Codec::Fp4, 9, RowBlocks(48, 24));
  codec::encode(t.ctx, t.random({9, 48}), keep);
  const SwigluOperands got = swiglu_backward_operands(fp8, dh, keep);
  const SwigluGradients want = swiglu_backward(t.ctx, dh, keep);
  expect_same(to_fp8(t.ctx, want.d_gate_up, kWide), got.d_gate_up);
  EXPECT_EQ(values(got.ht.data), values(want.h));
  const MainGrad grad = t.grad(16, 24);
  accumulate_dw(fp8, grad, t.random({9, 16}), got.ht);
  EXPECT_THROW(swiglu_into(fp8, t.random({9, 48}), {}, {}, t.zeros({9, 32})), Error) << "h is wider";
}

TEST_P(Fp8Inputs, NoTokensMakeNoGradient) {
  const MainGrad grad = t.grad(16, 32);
  accumulate_dw(fp8, grad, gradient_input(fp8, 0, 16), fp8_operand(t.ctx, 32, 0, kWhole));
  EXPECT_EQ(values(grad.data.plain()), Values(16 * 32, 0.0));
}

TEST_P(Fp8Inputs, RopeBackwardWritesWhatACastWould) {
  const Heads heads{2, 1, 8};
  const Tensor table = t.zeros({9, 8}, DType::F32), given = t.random({9, 32});
  const auto copy = [&] {
    const Tensor x = t.zeros(given.shape);
    for (int64_t i = 0; i < x.count(); ++i) set(x, i, get(given, i));
    return x;
  };
  RopeSpec spec;
  spec.dim = 8;
  fill_rope_table(spec, table);
  const Tensor positions = t.filled(
      {9}, [](int64_t i) { return static_cast<double>(i); }, DType::I32);
  t.ctx.positions = fp8.positions = positions;
  const Tensor alone = copy(), in_place = copy(), dqkv = copy();
  rope_backward(t.ctx, alone, heads, table);
  const Operand want = to_fp8(t.ctx, alone, kWide);
  expect_same(want, rope_backward_input(fp8, copy(), heads, table));
  expect_same(want, rope_backward_input(fp8, in_place, heads, table, true));
  EXPECT_EQ(values(in_place), values(alone)) << "in place too";
  EXPECT_EQ(rope_backward_input(t.ctx, dqkv, heads, table).data.data, dqkv.data) << "numbers stay where they are";
}

TEST_P(Fp8Inputs, MetaCountsTheSameBytes) {
  expect_same_peak(GetParam(), [&](TestContext& c) {
    Context ctx = c.ctx;
    ctx.fp8 = &kHybrid;
    const Tensor x = c.random({9, 48}), w = c.random({48}), rstd = c.zeros({9}, DType::F32);
    const codec::Quantized keep = c.kept(Codec::Fp4, 9, RowBlocks(48)),
                           gate_up = c.kept(Codec::Fp4, 9, RowBlocks(96, 48));
    rms_norm_into(ctx, x, w, kEps, keep, rstd, forward_input(ctx, 9, 48));
    recompute_rms_norm_transposed(ctx, keep, rstd, w, kWhole);
    recompute_layer_norm_transposed(ctx, keep, rstd, kWhole);
    swiglu_into(ctx, c.random({9, 96}), gate_up, {}, forward_input(ctx, 9, 48));
    swiglu_backward_operands(ctx, x, gate_up);
  });
}

}  // namespace
}  // namespace agoq::ops::test
