// Kernels that write what products read in 8-bit floats, beside the kernels that write numbers and those that cast: to
// the bit, but for LayerNorm again, whose mean is summed in another order. Codes that are turned, beside the CPU.
#include "cuda/pair.h"
#include "ops/attention/rope.h"
#include "ops/linear/fp8.h"
#include "ops/mlp/swiglu.h"
#include "ops/norm/layer_norm.h"
#include "ops/norm/rms_norm.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

constexpr float kEps = 1e-5f;
constexpr OperandFormat kByRow{DType::E4M3, Granularity::Row}, kWhole{DType::E4M3, Granularity::Tensor};
constexpr Fp8Recipe kRecipe{kByRow, kByRow, kByRow, kWhole, kWhole};
constexpr Fp8Recipe kHybrid{
    kByRow, kByRow, {DType::E5M2, Granularity::Row}, {DType::E5M2, Granularity::Tensor}, kWhole};

struct Case {
  int64_t rows;
  RowBlocks row;
};
// Rows that a CTA holds, and others; short blocks; tokens that are no multiple of a tile or of 16.
const std::vector<Case> kCases = {{1, RowBlocks(16)},          {5, RowBlocks(8 * 48, 48)}, {131, RowBlocks(256)},
                                  {70, RowBlocks(144)},        {300, RowBlocks(4096)},     {33, RowBlocks(5120)},
                                  {18, RowBlocks(14336, 1792)}};

class CudaFp8Inputs : public CudaTest {
 protected:
  void expect_same(const Operand& want, const Operand& got) {
    ASSERT_EQ(got.data.shape, want.data.shape);
    ASSERT_EQ(got.granularity, want.granularity);
    expect_same_bits(down(want.scale), got.scale, "scales");
    expect_same_bits(down(want.data), got.data, "codes");
    if (want.max_scale && got.max_scale) expect_same_bits(down(want.max_scale), got.max_scale, "max_scale");
  }
  Context with(const Fp8Recipe& recipe) const {
    Context ctx = g();
    ctx.fp8 = &recipe;
    return ctx;
  }
  // Rows of very different size, one of zeros, and one with a NaN if `damaged`.
  Tensor rows_of_many_sizes(Shape shape, bool damaged = false) {
    Tensor x = cpu->random(shape);
    const int64_t cols = shape[1];
    for (int64_t i = 0; i < x.count(); ++i) set(x, i, get(x, i) * std::ldexp(1, -static_cast<int>(i / cols % 23)));
    if (shape[0] > 3)
      for (int64_t i = 0; i < cols; ++i) set(x, 3 * cols + i, 0);
    if (damaged) set(x, (shape[0] - 1) * cols + cols / 2, std::nan(""));
    return x;
  }
};

TEST_F(CudaFp8Inputs, TurnedCodesHaveTheBitsOfTheCpu) {
  for (const Case& s : kCases)
    for (const DType dtype : {DType::E4M3, DType::E5M2})
      for (const bool damaged : {false, true}) {
        SCOPED_TRACE(fmt::format("[{}, {}] {} {}", s.rows, s.row.cols, name_of(dtype), damaged ? "damaged" : ""));
        start(DType::BF16);
        const Twin x = twin(rows_of_many_sizes({s.rows, s.row.cols}, damaged));
        const OperandFormat whole{dtype, Granularity::Tensor};
        const Operand cpu_rows = to_fp8_rows(c(), x.cpu, dtype), gpu_rows = to_fp8_rows(g(), x.gpu, dtype);
        const Operand cpu_turned = to_fp8_transposed(c(), cpu_rows, whole);
        const Operand gpu_turned = to_fp8_transposed(g(), gpu_rows, whole);
        expect_same_bits(cpu_rows.max_scale, gpu_rows.max_scale, "max_scale");
        expect_same_bits(cpu_turned.scale, gpu_turned.scale, "scale");
        expect_same_bits(cpu_turned.data, gpu_turned.data, "codes");
        if (!damaged) expect_same_bits(to_numbers(c(), cpu_rows), to_numbers(g(), gpu_rows), "numbers");
      }
}

TEST_F(CudaFp8Inputs, KnownScalesGiveTheBitsOfTheCpu) {
  for (const Case& s : kCases)
    for (const Granularity granularity : {Granularity::Tensor, Granularity::Row})
      for (const float known : {0.25f, 0.0f, std::nanf("")}) {
        SCOPED_TRACE(fmt::format("[{}, {}] per {}, {}", s.rows, s.row.cols, name_of(granularity), known));
        start(DType::BF16);
        const Twin x = twin(rows_of_many_sizes({s.rows, s.row.cols}));
        const OperandFormat format{DType::E4M3, granularity};
        Operand on_cpu = fp8_operand(c(), s.row.cols, s.rows, format);
        Operand on_gpu = fp8_operand(g(), s.row.cols, s.rows, format);
        const Twin scale = twin(cpu->filled(
            on_cpu.scale.shape, [&](int64_t i) { return i % 3 == 1 ? 0.5f : known; }, DType::F32));
        on_cpu.scale = scale.cpu, on_gpu.scale = scale.gpu;
        to_fp8_transposed_with(c(), x.cpu, on_cpu);
        to_fp8_transposed_with(g(), x.gpu, on_gpu);
        expect_same_bits(on_cpu.data, on_gpu.data, "codes");
      }
}

// Also rows that no CTA holds, and columns that are no multiple of 16.
TEST_F(CudaFp8Inputs, AWeightLeavesTheScalesOfItsTranspose) {
  std::vector<Shape> shapes = {{37, 70}, {3, 16640}, {1100, 72}, {8209, 40}};
  for (const Case& s : kCases) shapes.push_back({s.rows, s.row.cols});
  for (const Shape& shape : shapes)
    for (const DType dtype : {DType::BF16, DType::F32})
      for (const bool damaged : {false, true}) {
        SCOPED_TRACE(fmt::format("{} {}{}", shape.text(), name_of(dtype), damaged ? " damaged" : ""));
        start(dtype);
        const Twin w = twin(rows_of_many_sizes(shape, damaged));
        const Twin scale = twin(cpu->filled(
            {shape[1]}, [](int64_t) { return 9.0; }, DType::F32));
        const Operand on_cpu = fp8_operand(c(), shape[0], shape[1], kByRow);
        const Operand on_gpu = fp8_operand(g(), shape[0], shape[1], kByRow);
        weight_to_fp8_into(c(), w.cpu, on_cpu, scale.cpu);
        weight_to_fp8_into(g(), w.gpu, on_gpu, scale.gpu);
        expect_same_bits(on_cpu.scale, on_gpu.scale, "scales");
        expect_same_bits(on_cpu.data, on_gpu.data, "codes");
        expect_same_bits(scale.cpu, scale.gpu, "scales of the transpose");
        expect_same_bits(scale.cpu, to_fp8_transposed(g(), w.gpu, kByRow).scale, "scales of the transpose alone");
      }
}

TEST_F(CudaFp8Inputs, RmsNormWritesWhatACastWould) {
  for (const Case& s : kCases)
    for (const Codec codec : {Codec::Fp4, Codec::Int8, Codec::Bf16})
      for (const bool damaged : {false, true}) {
        SCOPED_TRACE(fmt::format("[{}, {}] {}", s.rows, s.row.cols, codec::name_of(codec)));
        start(DType::BF16);
        const Context ctx = with(kRecipe);
        const Tensor x = twin(rows_of_many_sizes({s.rows, s.row.cols}, damaged)).gpu, w = random({s.row.cols}).gpu;
        const codec::Quantized keep = kept(codec, s.rows, s.row).gpu, again = kept(codec, s.rows, s.row).gpu;
        const Tensor rstd = zeros({s.rows}, DType::F32).gpu;
        const Operand n = forward_input(ctx, s.rows, s.row.cols);
        ASSERT_TRUE(is_fp8(n.dtype()));
        rms_norm_into(ctx, x, w, kEps, keep, rstd, n);
        expect_same(to_fp8(g(), rms_norm(g(), x, w, kEps, again, rstd), kByRow), n);
        expect_same_bits(down(again), keep, "kept x");
        expect_same(to_fp8_transposed(g(), recompute_rms_norm(g(), keep, rstd, w), kWhole),
                    recompute_rms_norm_transposed(g(), keep, rstd, w, kWhole));
      }
}

TEST_F(CudaFp8Inputs, LayerNormWritesWhatACastWould) {
  for (const Case& s : kCases) {
    SCOPED_TRACE(fmt::format("[{}, {}]", s.rows, s.row.cols));
    start(DType::BF16);
    const Context ctx = with(kRecipe);
    const Tensor x = random({s.rows, s.row.cols}).gpu;
    const codec::Quantized keep = kept(Codec::Fp4, s.rows, s.row).gpu;
    const Tensor rstd = zeros({s.rows}, DType::F32).gpu;
    const Operand n = forward_input(ctx, s.rows, s.row.cols);
    layer_norm_into(ctx, x, kEps, keep, rstd, n);
    expect_same(to_fp8(g(), layer_norm(g(), x, kEps, keep, rstd), kByRow), n);
    const Operand nt = recompute_layer_norm_transposed(g(), keep, rstd, kWhole);
    // Its mean is summed in another order, so a number may be rounded the other way.
    const Operand cast = to_fp8_transposed(g(), recompute_layer_norm(g(), keep, rstd), kWhole);
    expect_same_bits(down(cast.scale), nt.scale, "scale");
    int64_t other = 0;
    const Tensor want = down(cast.data), got = down(nt.data);
    for (size_t i = 0; i < want.bytes(); ++i) other += want.raw()[i] != got.raw()[i];
    EXPECT_LE(other, want.count() / 100);
  }
}

TEST_F(CudaFp8Inputs, NormBackwardWritesItsGradientTwice) {
  for (const Case& s : kCases)
    for (const bool hybrid : {false, true})
      for (const bool layer : {false, true}) {
        SCOPED_TRACE(fmt::format("[{}, {}]{}{}", s.rows, s.row.cols, hybrid ? " e5m2" : "", layer ? " LayerNorm" : ""));
        start(DType::BF16);
        const Context ctx = with(hybrid ? kHybrid : kRecipe);
        const codec::Quantized x = encoded(cpu->random({s.rows, s.row.cols}, 2), Codec::Fp4, s.row).gpu;
        const Tensor dn = twin(rows_of_many_sizes({s.rows, s.row.cols})).gpu, w = random({s.row.cols}).gpu;
        const Tensor rstd =
            twin(cpu->filled(
                     {s.rows}, [](int64_t i) { return 0.5 + 0.01 * static_cast<double>(i % 7); }, DType::F32))
                .gpu;
        const Tensor residual = random({s.rows, s.row.cols}).gpu, dx = zeros({s.rows, s.row.cols}, DType::BF16).gpu,
                     alone = zeros({s.rows, s.row.cols}, DType::BF16).gpu;
        const MainGrad dw = grad(1, RowBlocks(s.row.cols)).gpu, dw_alone = grad(1, RowBlocks(s.row.cols)).gpu;
        const Operand dx_rows = gradient_input(ctx, s.rows, s.row.cols);
        ASSERT_TRUE(is_fp8(dx_rows.dtype()));
        if (layer) {
          layer_norm_backward_into(ctx, dn, x, rstd, residual, dx, dx_rows);
          layer_norm_backward_into(g(), dn, x, rstd, residual, alone);
        } else {
          rms_norm_backward_into(ctx, dn, x, rstd, w, residual, dx, dw, dx_rows);
          rms_norm_backward_into(g(), dn, x, rstd, w, residual, alone, dw_alone);
          expect_same_bits(down(dw_alone.data), dw.data, "dw");
        }
        expect_same_bits(down(alone), dx, "dx");
        expect_same(to_fp8(g(), alone, ctx.fp8->dy), dx_rows);
      }
}

TEST_F(CudaFp8Inputs, SwigluWritesWhatACastWould) {
  for (const Case& s : kCases)
    for (const Codec codec : {Codec::Fp4, Codec::Fp5, Codec::Int8, Codec::Bf16})
      for (const bool damaged : {false, true}) {
        SCOPED_TRACE(
            fmt::format("[{}, {}] {}{}", s.rows, s.row.cols, codec::name_of(codec), damaged ? " damaged" : ""));
        start(DType::BF16);
        const Context ctx = with(kHybrid);
        const int64_t width = s.row.cols;
        const RowBlocks both(2 * width, s.row.segment);
        const Tensor gate_up = twin(rows_of_many_sizes({s.rows, 2 * width}, damaged)).gpu;
        const Tensor dh = twin(rows_of_many_sizes({s.rows, width})).gpu;
        const codec::Quantized keep = kept(codec, s.rows, both).gpu, again = kept(codec, s.rows, both).gpu;
        const Operand h = forward_input(ctx, s.rows, width);
        swiglu_into(ctx, gate_up, keep, {}, h);
        expect_same(to_fp8(g(), swiglu(g(), gate_up, again), kByRow), h);
        expect_same_bits(down(again), keep, "kept gate_up");

        const SwigluOperands got = swiglu_backward_operands(ctx, dh, keep);
        const SwigluGradients want = swiglu_backward(g(), dh, keep);
        expect_same(to_fp8(g(), want.d_gate_up, kHybrid.dy), got.d_gate_up);
        expect_same(to_fp8_transposed(g(), to_fp8_rows(g(), want.h, DType::E4M3), kWhole), got.ht);
      }
}

TEST_F(CudaFp8Inputs, RopeBackwardWritesWhatACastWould) {
  for (const Heads heads :
       {Heads{4, 2, 64}, Heads{32, 8, 128}, Heads{1, 1, 16}, Heads{3, 1, 48}, Heads{2, 1, 8}, Heads{96, 32, 128}})
    for (const bool damaged : {false, true}) {
      SCOPED_TRACE(fmt::format("{} and {} heads of {}{}", heads.query, heads.kv, heads.dim, damaged ? " damaged" : ""));
      start(DType::BF16);
      const int64_t rows = 37;
      std::vector<int32_t> positions;
      for (int32_t i = 0; i < rows; ++i) positions.push_back(i % 20);
      documents(positions, std::vector<int32_t>(static_cast<size_t>(rows), 0));
      const Context ctx = with(kHybrid);
      const Tensor table = cpu->zeros({20, heads.dim}, DType::F32);
      RopeSpec spec;
      spec.dim = heads.dim;
      fill_rope_table(spec, table);
      const Tensor turns = twin(table).gpu, x = rows_of_many_sizes({rows, heads.cols()}, damaged);
      const Tensor dqkv = twin(x).gpu, in_place = twin(x).gpu, alone = twin(x).gpu;
      const Operand got = rope_backward_input(ctx, dqkv, heads, turns);
      ASSERT_TRUE(is_fp8(got.dtype()));
      rope_backward(g(), alone, heads, turns);
      const Operand want = to_fp8(g(), alone, kHybrid.dy);
      expect_same(want, got);
      expect_same(want, rope_backward_input(ctx, in_place, heads, turns, true));
      expect_same_bits(down(alone), in_place, "in place too");
    }
}

TEST_F(CudaFp8Inputs, PlannedBytesAreHeld) {
  expect_planned_peak([&](Context& base) {
    Context ctx = base;
    ctx.fp8 = &kRecipe;
    const auto gate_up = codec::allocate(ctx.arena(), Owner::Operands, Codec::Fp4, 48, RowBlocks(512, 128));
    const auto x = codec::allocate(ctx.arena(), Owner::Operands, Codec::Fp4, 48, RowBlocks(256));
    const Tensor rstd = ctx.arena().allocate(Owner::Operands, DType::F32, {48});
    Scope scope(ctx);
    const Tensor numbers = ctx.empty({48, 512}), stream = ctx.empty({48, 256}), w = ctx.empty(DType::BF16, {256});
    swiglu_into(ctx, numbers, gate_up, {}, forward_input(ctx, 48, 256));
    swiglu_backward_operands(ctx, stream, gate_up);
    rms_norm_into(ctx, stream, w, kEps, x, rstd, forward_input(ctx, 48, 256));
    recompute_rms_norm_transposed(ctx, x, rstd, w, kWhole);
    recompute_layer_norm_transposed(ctx, x, rstd, kWhole);
    to_fp8_transposed(ctx, gradient_input(ctx, 48, 256), kWhole);
  });
}

}  // namespace
}  // namespace agoq::ops::test
