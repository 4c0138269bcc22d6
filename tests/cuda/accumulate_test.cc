#include "ops/gradient/accumulate.h"

#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

const std::vector<Codec> kCodecs = {Codec::Int8, Codec::Fp8, Codec::Bf16, Codec::Fp32,
                                    Codec::Fp4,  Codec::Fp6, Codec::Dyn8};

class CudaAccumulate : public CudaTest {
 protected:
  void set_keys(uint32_t micro_batch) {
    for (Context* ctx : {&c(), &g()}) {
      ctx->random.seed = 0x123456789abcdefull;
      ctx->random.step = 11;
      ctx->random.micro_batch = micro_batch;
    }
  }
  // A main gradient that is not zero.
  GradTwin some_grad(int64_t rows, RowBlocks row, Codec codec, bool stochastic) {
    const QuantizedTwin q = encoded(cpu->random({rows, row.cols}, 3, DType::F32), codec, row);
    return {{q.cpu, 7, stochastic}, {q.gpu, 7, stochastic}};
  }
};

// One fp32 addition and the codec's arithmetic: the same bits.
TEST_F(CudaAccumulate, HasTheBitsOfTheCpu) {
  for (const Codec codec : kCodecs)
    for (const bool stochastic : {true, false})
      for (const DType delta_type : {DType::BF16, DType::F32})
        for (const RowBlocks row : {RowBlocks(1), RowBlocks(300), RowBlocks(1376 * 2, 1376), RowBlocks(77 * 8, 77)})
          for (const bool fresh : {false, true}) {
            start(DType::BF16, size_t{32} << 20);
            set_keys(stochastic ? 5 : 4);
            GradTwin grad = some_grad(9, row, codec, stochastic);
            grad.cpu.fresh = grad.gpu.fresh = fresh;
            const Twin delta = random({4, row.cols}, 0.5, delta_type);
            accumulate(c(), grad.cpu, delta.cpu, 3);
            accumulate(g(), grad.gpu, delta.gpu, 3);
            expect_same_bits(grad.cpu.data, grad.gpu.data, "rows 3 to 6 of a gradient");
          }
}

TEST_F(CudaAccumulate, ALayersRows) {
  set_keys(2);
  const GradTwin grad = some_grad(300, RowBlocks(4096, 512), Codec::Int8, true);
  const Twin delta = random({300, 4096}, 0.5, DType::BF16);
  accumulate(c(), grad.cpu, delta.cpu);
  accumulate(g(), grad.gpu, delta.gpu);
  expect_same_bits(grad.cpu.data, grad.gpu.data, "a gradient");
}

// Rows of whole blocks, which are added four at once: an odd number of blocks, of rows, and both of one strip and many.
TEST_F(CudaAccumulate, WholeBlocks) {
  for (const Codec codec : {Codec::Int8, Codec::Fp8, Codec::Dyn8})
    for (const bool stochastic : {true, false})
      for (const DType delta_type : {DType::BF16, DType::F32})
        for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{4, 128}, {4, 256}, {8, 1152}, {23, 2048}})
          for (const bool fresh : {false, true}) {
            start(DType::BF16, size_t{32} << 20);
            set_keys(stochastic && fresh ? 5 : 4);
            GradTwin grad = some_grad(rows + 3, RowBlocks(cols), codec, stochastic);
            grad.cpu.fresh = grad.gpu.fresh = fresh;
            const Twin delta = random({rows, cols}, 0.5, delta_type);
            accumulate(c(), grad.cpu, delta.cpu, 2);
            accumulate(g(), grad.gpu, delta.gpu, 2);
            expect_same_bits(grad.cpu.data, grad.gpu.data, "rows of whole blocks");
          }
}

// Blocks of zeros of either sign, of numbers that are larger than the largest scale allows, of the smallest, and with a
// NaN, beside one another and beside ordinary ones.
TEST_F(CudaAccumulate, WholeBlocksOfRareNumbers) {
  const int64_t rows = 16, cols = 1024;
  const auto number = [&](int64_t i) -> double {
    const int64_t block = i / codec::kBlock;
    const double sign = i % 3 == 0 ? -1 : 1;
    switch (block * 7 % 11) {
      case 0:
        return sign * 0.0;
      case 1:
        return i % 5 == 0 ? sign * 3.38e38 : sign * 1e37;
      case 2:
        return sign * 1e-40;
      case 3:
        return i % codec::kBlock == 77 ? std::numeric_limits<double>::quiet_NaN() : 1.0;
      default:
        return sign * static_cast<double>(i % 251) / 16;
    }
  };
  for (const Codec codec : {Codec::Int8, Codec::Fp8, Codec::Dyn8})
    for (const DType delta_type : {DType::BF16, DType::F32})
      for (const bool fresh : {false, true}) {
        start(DType::BF16, size_t{32} << 20);
        set_keys(3);
        GradTwin grad = some_grad(rows, RowBlocks(cols), codec, true);
        grad.cpu.fresh = grad.gpu.fresh = fresh;
        const Twin delta = twin(cpu->filled({rows, cols}, number, delta_type));
        for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
          accumulate(c(), grad.cpu, delta.cpu);
          accumulate(g(), grad.gpu, delta.gpu);
          grad.cpu.fresh = grad.gpu.fresh = false;
        }
        expect_same_bits(grad.cpu.data, grad.gpu.data, "rare numbers");
      }
}

TEST_F(CudaAccumulate, APartOfATensorDrawsAsOnTheCpu) {
  set_keys(2);
  GradTwin grad = some_grad(27, RowBlocks(1024, 512), Codec::Int8, true);
  grad.cpu.global_offset =
      grad.gpu.global_offset = {.begin = {0, 5, 18}, .shift = {8, 40, 70}, .first_block = 4, .blocks_per_row = 32};
  const Twin delta = random({25, 1024}, 0.5, DType::BF16);
  accumulate(c(), grad.cpu, delta.cpu, 2);
  accumulate(g(), grad.gpu, delta.gpu, 2);
  expect_same_bits(grad.cpu.data, grad.gpu.data, "a gradient");
}

TEST_F(CudaAccumulate, DamageIsNotHidden) {
  const GradTwin grad = some_grad(2, RowBlocks(200), Codec::Int8, true);
  const Twin delta = twin(cpu->filled(
      {2, 200}, [](int64_t i) { return i == 17 ? std::numeric_limits<double>::infinity() : 1; }, DType::F32));
  accumulate(c(), grad.cpu, delta.cpu);
  accumulate(g(), grad.gpu, delta.gpu);
  expect_same_bits(grad.cpu.data, grad.gpu.data, "a gradient with an infinity");
}

// The products differ by rounding, so sums do by what the codec makes of it: nearest rounding, to compare numbers.
TEST_F(CudaAccumulate, ProductOfEveryCodecAndType) {
  for (const DType compute : {DType::BF16, DType::F32})
    for (const Codec codec : {Codec::Int8, Codec::Fp8, Codec::Bf16, Codec::Fp32})
      for (const bool fresh : {false, true}) {
        start(compute, size_t{128} << 20);
        GradTwin grad = some_grad(37, RowBlocks(140), codec, false);
        grad.cpu.fresh = grad.gpu.fresh = fresh;
        const Twin dy = random({75, 37}), x = random({75, 140});
        accumulate_dw(c(), grad.cpu, dy.cpu, x.cpu);
        accumulate_dw(g(), grad.gpu, dy.gpu, x.gpu);
        const codec::Quantized got = down(grad.gpu.data);
        const double step = codec == Codec::Int8 ? 0.01 : codec == Codec::Fp8 ? 0.04 : 1e-2;
        expect_relative(values(cpu->decoded(grad.cpu.data)), values(cpu->decoded(got)),
                        codec == Codec::Fp32 ? 1e-5 : step, "dW");
      }
}

// 64 MiB hold 1536 of these 2000 rows of bf16: two slabs of 1024 and 976.
TEST_F(CudaAccumulate, SlabsOfRowsLeaveNoSeam) {
  start(DType::BF16, size_t{512} << 20);
  const int64_t out = 2000, in = 20000;
  const GradTwin grad = this->grad(out, RowBlocks(in), Codec::Bf16, false);
  const Twin dy = random({40, out}), x = random({40, in});
  accumulate_dw(g(), grad.gpu, dy.gpu, x.gpu);
  const Tensor got = down(grad.gpu.data.codes);
  const auto* numbers = reinterpret_cast<const Bf16*>(got.data);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = o % 997; i < in; i += 997) {
      double want = 0;
      for (int64_t k = 0; k < 40; ++k) want += get(dy.cpu, k * out + o) * get(x.cpu, k * in + i);
      ASSERT_NEAR(to_float(numbers[o * in + i]), want, std::abs(want) * 0x1p-7 + 1e-4) << o << ", " << i;
    }
}

TEST_F(CudaAccumulate, ColumnSums) {
  for (const DType compute : {DType::BF16, DType::F32})
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {501, 77}, {70, 256}, {300, 6144}}) {
      start(compute);
      const GradTwin grad = some_grad(1, RowBlocks(cols), Codec::Fp32, true);
      const Twin dy = random({rows, cols});
      accumulate_db(c(), grad.cpu, dy.cpu);
      accumulate_db(g(), grad.gpu, dy.gpu);
      expect_relative(grad.cpu.data.plain(), grad.gpu.data.plain(), 1e-6, "db");
    }
}

TEST_F(CudaAccumulate, PlannedBytesAreHeld) {
  for (const Codec codec : {Codec::Int8, Codec::Fp32})
    expect_planned_peak([&](Context& ctx) {
      const auto grad = [&](int64_t rows, int64_t cols) {
        return MainGrad{codec::allocate(ctx.arena(), Owner::Operands, codec, rows, RowBlocks(cols)), 1, true};
      };
      const Tensor dy = ctx.arena().allocate(Owner::Operands, ctx.compute(), {90, 1000});
      const Tensor x = ctx.arena().allocate(Owner::Operands, ctx.compute(), {90, 3000});
      accumulate_dw(ctx, grad(1000, 3000), dy, x);
      accumulate(ctx, grad(90, 3000), x);
      accumulate_db(ctx, grad(1, 1000), dy);
    });
}

}  // namespace
}  // namespace agoq::ops::test
