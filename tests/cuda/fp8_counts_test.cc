// Numbers that 8-bit floats do not hold: a GPU counts what the CPU counts, and kernels that write operands what casts
// of the same numbers count.
#include "cuda/pair.h"
#include "ops/attention/rope.h"
#include "ops/linear/fp8.h"
#include "ops/mlp/swiglu.h"
#include "ops/norm/rms_norm.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

constexpr float kEps = 1e-5f;
constexpr OperandFormat kByRow{DType::E4M3, Granularity::Row}, kWhole{DType::E4M3, Granularity::Tensor};
constexpr Fp8Recipe kHybrid{
    kByRow, kByRow, {DType::E5M2, Granularity::Row}, {DType::E5M2, Granularity::Tensor}, kWhole};
constexpr size_t kX = 0, kDy = 2, kDwX = 4;

// Rows that a CTA holds, and others; short blocks; tokens that are no multiple of a tile or of 16.
struct Case {
  int64_t rows;
  RowBlocks row;
};
const std::vector<Case> kCases = {{1, RowBlocks(16)},          {131, RowBlocks(256)},  {70, RowBlocks(144)},
                                  {65, RowBlocks(768)},        {300, RowBlocks(4096)}, {33, RowBlocks(5120)},
                                  {18, RowBlocks(14336, 1792)}};

class CudaFp8Counts : public CudaTest {
 protected:
  // Rows of very different size, some of whose numbers are nothing beside the others; one of zeros, one with a NaN.
  Tensor wide(Shape shape, bool damaged = false) {
    Tensor x = cpu->random(shape);
    const int64_t cols = shape[1];
    for (int64_t i = 0; i < x.count(); ++i)
      set(x, i, get(x, i) * std::ldexp(1, -static_cast<int>(i / cols % 11 + (i % 5 == 0 ? 21 : 0))));
    if (shape[0] > 3)
      for (int64_t i = 0; i < cols; ++i) set(x, 3 * cols + i, 0);
    if (damaged) set(x, (shape[0] - 1) * cols + cols / 2, std::nan(""));
    return x;
  }
  // What fn(context) counts.
  template <class Fn>
  static Fp8Counts counted_by(const Context& base, const Fn& fn) {
    Fp8Counter counter(base.arena());
    Context ctx = base;
    ctx.fp8 = &kHybrid;
    ctx.fp8_counter = &counter;
    fn(ctx);
    return counter.take(ctx);
  }
  static Fp8Count cast(const Context& base, const Tensor& x, OperandFormat format, bool transposed = false) {
    return counted_by(base, [&](const Context& ctx) {
      const int64_t rows = x.shape[transposed ? 1 : 0], k = x.shape[transposed ? 0 : 1];
      const Operand out = counted(ctx, fp8_operand(ctx, rows, k, format), Fp8Role::X);
      transposed ? to_fp8_transposed_into(ctx, x, out) : to_fp8_into(ctx, x, out);
    })[kX];
  }
};

TEST_F(CudaFp8Counts, CastsCountWhatTheCpuCounts) {
  for (const Case& s : kCases)
    for (const DType type : {DType::BF16, DType::F32})
      for (const DType dtype : {DType::E4M3, DType::E5M2})
        for (const bool damaged : {false, true}) {
          start(type);
          const Twin x = twin(wide({s.rows, s.row.cols}, damaged));
          for (const Granularity granularity :
               {Granularity::Tensor, Granularity::Row, Granularity::Block1x128, Granularity::Block128x128})
            for (const bool transposed : {false, true}) {
              SCOPED_TRACE(fmt::format("[{}, {}] {} {} per {}{}{}", s.rows, s.row.cols, name_of(type), name_of(dtype),
                                       name_of(granularity), transposed ? " transposed" : "",
                                       damaged ? " damaged" : ""));
              const OperandFormat format{dtype, granularity};
              EXPECT_EQ(cast(g(), x.gpu, format, transposed), cast(c(), x.cpu, format, transposed));
            }
        }
}

TEST_F(CudaFp8Counts, AKnownScaleAndTurnedCodesCountWhatTheCpuCounts) {
  for (const Case& s : kCases)
    for (const float known : {0x1p-12f, 0.0f, std::nanf("")}) {
      SCOPED_TRACE(fmt::format("[{}, {}] {}", s.rows, s.row.cols, known));
      start(DType::BF16);
      const Twin x = twin(wide({s.rows, s.row.cols}));
      const Twin scale = twin(cpu->filled(
          {1}, [&](int64_t) { return known; }, DType::F32));
      const auto counts = [&](const Context& base, const Tensor& numbers, const Tensor& of_all) {
        return counted_by(base, [&](const Context& ctx) {
          Operand out = operand_for(ctx, s.row.cols, s.rows, Fp8Role::DwX);
          out.scale = of_all;
          to_fp8_transposed_with(ctx, numbers, out);
          to_fp8_transposed_into(ctx, to_fp8_rows(ctx, numbers, DType::E4M3),
                                 counted(ctx, fp8_operand(ctx, s.row.cols, s.rows, kWhole), Fp8Role::X));
        });
      };
      const Fp8Counts want = counts(c(), x.cpu, scale.cpu);
      EXPECT_EQ(counts(g(), x.gpu, scale.gpu), want);
      EXPECT_EQ(want[kDwX].saturated > 0, known > 0);
    }
}

TEST_F(CudaFp8Counts, KernelsThatWriteOperandsCountWhatCastsCount) {
  for (const Case& s : kCases)
    for (const bool damaged : {false, true}) {
      SCOPED_TRACE(fmt::format("[{}, {}]{}", s.rows, s.row.cols, damaged ? " damaged" : ""));
      start(DType::BF16);
      const int64_t rows = s.rows, width = s.row.cols;
      const Tensor x = twin(wide({rows, width}, damaged)).gpu, w = random({width}).gpu;
      const codec::Quantized keep = kept(Codec::Bf16, rows, s.row).gpu;
      const Tensor rstd = zeros({rows}, DType::F32).gpu;
      const Fp8Counts norm = counted_by(g(), [&](const Context& ctx) {
        rms_norm_into(ctx, x, w, kEps, keep, rstd, forward_input(ctx, rows, width));
        recompute_rms_norm_transposed(ctx, keep, rstd, w, kWhole);
      });
      EXPECT_EQ(norm[kX], cast(g(), rms_norm(g(), x, w, kEps), kByRow));
      EXPECT_EQ(norm[kDwX], cast(g(), recompute_rms_norm(g(), keep, rstd, w), kWhole, true));

      for (const bool residual : {false, true}) {
        const Tensor dx = residual ? random({rows, width}).gpu : zeros({rows, width}, DType::BF16).gpu;
        const MainGrad dw = grad(1, RowBlocks(width)).gpu;
        const Fp8Counts backward = counted_by(g(), [&](const Context& ctx) {
          const Operand dx_rows = gradient_input(ctx, rows, width);
          rms_norm_backward_into(ctx, x, keep, rstd, w, residual ? dx : Tensor{}, dx, dw, dx_rows);
        });
        EXPECT_EQ(backward[kDy], cast(g(), dx, kHybrid.dy)) << (residual ? "with a residual" : "");
      }

      const Tensor gate_up = twin(wide({rows, 2 * width}, damaged)).gpu;
      const codec::Quantized both = kept(Codec::Bf16, rows, RowBlocks(2 * width, s.row.segment)).gpu;
      const Fp8Counts forward = counted_by(
          g(), [&](const Context& ctx) { swiglu_into(ctx, gate_up, both, {}, forward_input(ctx, rows, width)); });
      EXPECT_EQ(forward[kX], cast(g(), swiglu(g(), gate_up), kByRow));
      const Fp8Counts swiglu = counted_by(g(), [&](const Context& ctx) { swiglu_backward_operands(ctx, x, both); });
      const SwigluGradients want = swiglu_backward(g(), x, both);
      EXPECT_EQ(swiglu[kDy], cast(g(), want.d_gate_up, kHybrid.dy));
      EXPECT_EQ(swiglu[kDwX].saturated, 0);
      EXPECT_GE(swiglu[kDwX].flushed, cast(g(), want.h, kByRow).flushed);
    }
}

TEST_F(CudaFp8Counts, RopeBackwardCountsWhatACastCounts) {
  const Heads heads{32, 8, 128};
  start(DType::BF16);
  std::vector<int32_t> positions;
  for (int32_t i = 0; i < 37; ++i) positions.push_back(i % 20);
  documents(positions, std::vector<int32_t>(37, 0));
  const Tensor table = cpu->zeros({20, heads.dim}, DType::F32);
  RopeSpec spec;
  spec.dim = heads.dim;
  fill_rope_table(spec, table);
  const Tensor turns = twin(table).gpu, x = wide({37, heads.cols()});
  const Tensor dqkv = twin(x).gpu, alone = twin(x).gpu;
  rope_backward(g(), alone, heads, turns);
  const Fp8Counts rotated = counted_by(g(), [&](const Context& ctx) { rope_backward_input(ctx, dqkv, heads, turns); });
  EXPECT_EQ(rotated[kDy], cast(g(), alone, kHybrid.dy));
}

}  // namespace
}  // namespace agoq::ops::test
