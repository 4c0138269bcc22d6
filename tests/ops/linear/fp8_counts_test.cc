// Numbers that their codes do not hold are counted: by role, to the unit, and without changing a bit.
#include "ops/linear/fp8_counts.h"

#include <cmath>

#include "ops/attention/rope.h"
#include "ops/linear/fp8.h"
#include "ops/linear/linear.h"
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
constexpr size_t kX = 0, kW = 1, kDy = 2, kDwDy = 3, kDwX = 4;

struct Fp8Counting : testing::TestWithParam<DType> {
  TestContext t{GetParam()};
  Fp8Counter counter{t.ctx.arena()};
  Context counting = t.ctx;
  void SetUp() override {
    counting.fp8 = &kHybrid;
    counting.fp8_counter = &counter;
  }

  // Rows whose sizes are powers of two apart: many are too small for one scale, and some of a row for its own.
  Tensor wide(Shape shape) {
    Tensor x = t.random(shape);
    const int64_t cols = shape[1];
    for (int64_t i = 0; i < x.count(); ++i)
      set(x, i, get(x, i) * std::ldexp(1, -static_cast<int>(i / cols % 11 + (i % 5 == 0 ? 21 : 0))));
    set(x, 1, 0);
    return x;
  }
  Fp8Count counted_as(const Tensor& x, OperandFormat format, bool transposed = false) {
    const int64_t rows = x.shape[transposed ? 1 : 0], k = x.shape[transposed ? 0 : 1];
    const Operand out = counter.counted(fp8_operand(t.ctx, rows, k, format), Fp8Role::X);
    transposed ? to_fp8_transposed_into(t.ctx, x, out) : to_fp8_into(t.ctx, x, out);
    return counter.take(t.ctx)[kX];
  }
};
INSTANTIATE_TEST_SUITE_P(Compute, Fp8Counting, testing::Values(DType::F32, DType::BF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

// Half of the smallest number of a format rounds to zero, and so does all below.
TEST_P(Fp8Counting, FlushedNumbersAreAtMostHalfOfTheLeastCode) {
  for (const DType dtype : {DType::E4M3, DType::E5M2})
    for (const Granularity granularity :
         {Granularity::Tensor, Granularity::Row, Granularity::Block1x128, Granularity::Block128x128})
      for (const bool transposed : {false, true}) {
        SCOPED_TRACE(fmt::format("{} {} {}", name_of(dtype), name_of(granularity), transposed));
        const int64_t rows = 131, k = 150;
        const Tensor x = wide(transposed ? Shape{k, rows} : Shape{rows, k});
        const OperandFormat format{dtype, granularity};
        const Operand codes = transposed ? to_fp8_transposed(t.ctx, x, format) : to_fp8(t.ctx, x, format);
        const double half = dtype == DType::E4M3 ? 0x1p-10 : 0x1p-17;
        int64_t flushed = 0;
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t i = 0; i < k; ++i) {
            const double number = get(x, transposed ? i * rows + r : r * k + i);
            const double scale = get(codes.scale, scale_index(codes, r, i));
            flushed += number != 0 && std::abs(number) <= half * scale;
          }
        EXPECT_GT(flushed, 0);
        EXPECT_EQ(counted_as(x, format, transposed), (Fp8Count{codes.data.count(), 0, flushed}));
      }
}

TEST_P(Fp8Counting, SaturatedNumbersAreBeyondTheLargest) {
  const Tensor x = t.zeros({3, 16});
  set(x, 0, 448), set(x, 1, -450), set(x, 2, 1e6), set(x, 3, INFINITY), set(x, 4, 0x1p-10), set(x, 5, 0x1.02p-10);
  const Operand out = counter.counted(fp8_operand(t.ctx, 16, 3, kWhole), Fp8Role::DwDy);
  set(out.scale, 0, 1);
  to_fp8_transposed_with(t.ctx, x, out);
  const Fp8Counts counts = counter.take(t.ctx);
  EXPECT_EQ(counts[kDwDy], (Fp8Count{16 * 16, 3, 1})) << "padding is encoded, too";
  EXPECT_EQ(counts[kX], Fp8Count{});
  EXPECT_EQ(counter.take(t.ctx), Fp8Counts{}) << "they are taken once";
}

TEST_P(Fp8Counting, GroupsWithoutNumbersLoseNone) {
  const Tensor x = t.zeros({3, 16});
  for (int64_t i = 0; i < 16; ++i) set(x, 16 + i, i == 3 ? std::nan("") : 1e-30);
  set(x, 32, 1), set(x, 33, 1e-30);
  EXPECT_EQ(counted_as(x, kRows), (Fp8Count{48, 0, 1})) << "zeros; a NaN; a number and one that is nothing beside it";
  EXPECT_EQ(counted_as(x, kWhole), (Fp8Count{48, 0, 0}));
}

// Codes that are turned under one scale: of those, the ones that were not zero.
TEST_P(Fp8Counting, TurningCountsWhatItLosesItself) {
  const Tensor x = wide({22, 48});
  const Operand rows = to_fp8_rows(t.ctx, x, DType::E4M3);
  const Operand turned = counter.counted(fp8_operand(t.ctx, 48, 22, kWhole), Fp8Role::DwX);
  to_fp8_transposed_into(t.ctx, rows, turned);
  int64_t lost = 0;
  for (int64_t r = 0; r < 22; ++r)
    for (int64_t i = 0; i < 48; ++i)
      lost += (rows.data.raw()[r * 48 + i] & 0x7f) != 0 && (turned.data.raw()[i * turned.k() + r] & 0x7f) == 0;
  EXPECT_GT(lost, 0);
  EXPECT_EQ(counter.take(t.ctx)[kDwX], (Fp8Count{48 * 32, 0, lost}));
}

TEST_P(Fp8Counting, ProductsCountTheirOperandsByRole) {
  const Tensor x = wide({22, 48}), w = wide({32, 48}), dy = wide({22, 32});
  Context plain = t.ctx;
  plain.fp8 = &kHybrid;
  EXPECT_EQ(values(linear(plain, x, w)), values(linear(counting, x, w)));
  Fp8Counts counts = counter.take(t.ctx);
  EXPECT_EQ(counts[kX], counted_as(x, kRows));
  EXPECT_EQ(counts[kW], counted_as(w, kRows));

  EXPECT_EQ(values(linear_dx(plain, dy, w)), values(linear_dx(counting, dy, w)));
  counts = counter.take(t.ctx);
  EXPECT_EQ(counts[kDy], counted_as(dy, kWide));
  EXPECT_EQ(counts[kW], counted_as(w, kRows, true));

  const MainGrad grad = t.grad(32, 48), with_counts = t.grad(32, 48);
  accumulate_dw(plain, grad, dy, x);
  accumulate_dw(counting, with_counts, dy, x);
  EXPECT_EQ(values(grad.data.plain()), values(with_counts.data.plain()));
  counts = counter.take(t.ctx);
  EXPECT_EQ(counts[kDwDy], counted_as(dy, kWideWhole, true));
  EXPECT_EQ(counts[kDwX], counted_as(x, kWhole, true));
  EXPECT_EQ(counts[kX], Fp8Count{});
}

TEST_P(Fp8Counting, OpsThatMakeOperandsCountThem) {
  const Tensor x = wide({22, 48}), w = t.random({48}), rstd = t.zeros({22}, DType::F32);
  const codec::Quantized keep = t.kept(Codec::Bf16, 22, RowBlocks(48));
  rms_norm_into(counting, x, w, 0, keep, rstd, forward_input(counting, 22, 48));
  const Fp8Count n = counter.take(t.ctx)[kX];
  EXPECT_EQ(n, counted_as(rms_norm(t.ctx, x, w, 0), kRows));
  EXPECT_EQ(n.encoded, 22 * 48);
  recompute_rms_norm_transposed(counting, keep, rstd, w, kWhole);
  const Fp8Count again = counter.take(t.ctx)[kDwX];
  EXPECT_EQ(again, counted_as(recompute_rms_norm(t.ctx, keep, rstd, w), kWhole, true));

  const Tensor gate_up = wide({22, 96}), dh = wide({22, 48});
  const codec::Quantized both = t.kept(Codec::Bf16, 22, RowBlocks(96, 48));
  swiglu_into(counting, gate_up, both, {}, forward_input(counting, 22, 48));
  const Fp8Count h = counter.take(t.ctx)[kX];
  EXPECT_EQ(h, counted_as(swiglu(t.ctx, gate_up), kRows));
  EXPECT_GT(h.flushed, 0);
  swiglu_backward_operands(counting, dh, both);
  const Fp8Counts backward = counter.take(t.ctx);
  const SwigluGradients want = swiglu_backward(t.ctx, dh, both);
  EXPECT_EQ(backward[kDy], counted_as(want.d_gate_up, kWide));
  const Operand rows = to_fp8_rows(t.ctx, want.h, DType::E4M3);
  const Operand turned = counter.counted(fp8_operand(t.ctx, 48, 22, kWhole), Fp8Role::DwX);
  to_fp8_transposed_into(t.ctx, rows, turned);
  const Fp8Count turning = counter.take(t.ctx)[kDwX], cast = counted_as(want.h, kRows);
  EXPECT_EQ(backward[kDwX], (Fp8Count{turning.encoded, 0, turning.flushed + cast.flushed}))
      << "rows, and then their turning";
}

}  // namespace
}  // namespace agoq::ops::test
