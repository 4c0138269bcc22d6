#include "ops/head/embedding.h"

#include <cmath>

#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

struct WeightTwin {
  Weight cpu, gpu;
};

class CudaWeights : public CudaTest {
 protected:
  // "split", "fp32" or "both" on both devices, holding `values`.
  WeightTwin weight(const std::string& form, const Tensor& values) {
    WeightTwin w;
    for (Weight* side : {&w.cpu, &w.gpu}) {
      Arena& memory = side == &w.cpu ? cpu->arena : *arena;
      side->value = memory.allocate(Owner::Operands, form == "fp32" ? DType::F32 : DType::BF16, values.shape);
      if (form == "split") side->correction = memory.allocate(Owner::Operands, DType::I16, values.shape);
      if (form == "both") side->master = memory.allocate(Owner::Operands, DType::F32, values.shape);
    }
    store_fp32(c(), w.cpu, values.as<float>());
    store_fp32(g(), w.gpu, values.as<float>());
    return w;
  }
  // Tokens as in text: few are most of it, some come once, most never.
  Twin tokens(int64_t count, int64_t vocabulary) {
    return twin(cpu->filled(
        {count},
        [&](int64_t i) {
          return i % 3 == 0 ? 5.0 : i % 7 == 0 ? 0.0 : static_cast<double>((i * 7919 + i * i) % vocabulary);
        },
        DType::I32));
  }
};

TEST_F(CudaWeights, GoUpAndComeDownBitForBit) {
  for (const std::string form : {"split", "fp32", "both"}) {
    start(DType::BF16);
    const Tensor exact = cpu->random({37, 129}, 1, DType::F32);
    const WeightTwin w = weight(form, exact);
    expect_same_bits(w.cpu.value, w.gpu.value, "value");
    std::vector<float> back(static_cast<size_t>(exact.count()));
    load_fp32(g(), w.gpu, back.data());
    EXPECT_EQ(std::memcmp(back.data(), exact.data, exact.bytes()), 0) << form;
    std::vector<float> part(static_cast<size_t>(3 * exact.cols()));
    load_fp32(g(), w.gpu.row_range(4, 7), part.data());
    EXPECT_EQ(std::memcmp(part.data(), exact.as<float>() + 4 * exact.cols(), part.size() * sizeof(float)), 0) << form;
  }
}

TEST_F(CudaWeights, FirstNumbersAreThoseOfTheCpu) {
  const NormalRows numbers{{.seed = 9, .stream = RngStream::Initialization, .tensor = 3}, 0.02f, 4099, 70'000, 1021};
  for (const std::string form : {"split", "fp32", "both"}) {
    start(DType::BF16);
    const WeightTwin w = weight(form, cpu->zeros({37, 1030}, DType::F32));
    fill_normal(c(), w.cpu, numbers);
    fill_normal(g(), w.gpu, numbers);
    std::vector<float> here(static_cast<size_t>(w.cpu.value.count())), there(here.size());
    load_fp32(c(), w.cpu, here.data());
    load_fp32(g(), w.gpu, there.data());
    for (size_t i = 0; i < here.size(); ++i)
      ASSERT_NEAR(here[i], there[i], 2e-7f * std::fabs(here[i]) + 1e-12f) << form;
  }
}

TEST_F(CudaWeights, AreReadInTheComputeTypeWithTheBitsOfTheCpu) {
  for (const DType compute : {DType::BF16, DType::F32})
    for (const std::string form : {"split", "fp32", "both"})
      for (const Shape shape : {Shape{1, 1}, Shape{5, 77}, Shape{33, 4096}, Shape{4099}}) {
        start(compute, size_t{32} << 20);
        const WeightTwin w = weight(form, cpu->random(shape, 1, DType::F32));
        const Tensor got = in_compute_type(g(), w.gpu);
        expect_same_bits(in_compute_type(c(), w.cpu), got, form.c_str());
        const bool held = w.gpu.value.dtype == compute || (w.gpu.master && compute == DType::F32);
        EXPECT_EQ(arena->stack_bytes() == 0, held) << form;
      }
}

class CudaEmbedding : public CudaWeights {
 protected:
  void backward(int64_t count, int64_t vocabulary, RowBlocks row, Codec codec, bool stochastic) {
    for (Context* ctx : {&c(), &g()}) ctx->random = {.seed = 77, .step = 3, .micro_batch = 9};
    const QuantizedTwin q = encoded(cpu->random({vocabulary, row.cols}, 1, DType::F32), codec, row);
    const MainGrad want{q.cpu, 5, stochastic}, got{q.gpu, 5, stochastic};
    const Twin ids = tokens(count, vocabulary), dx = random({count, row.cols});
    embedding_backward(c(), ids.cpu, dx.cpu, want);
    embedding_backward(g(), ids.gpu, dx.gpu, got);
    expect_same_bits(want.data, got.data, "gradient of the embedding");
  }
};

TEST_F(CudaEmbedding, GathersEveryFormInEveryComputeType) {
  for (const DType compute : {DType::BF16, DType::F32})
    for (const std::string form : {"split", "fp32", "both"})
      for (const int64_t hidden : {77, 150, 4096}) {
        start(compute, size_t{64} << 20);
        const WeightTwin w = weight(form, cpu->random({50, hidden}, 1, DType::F32));
        const Twin ids = tokens(301, 50);
        const Tensor got = embedding(g(), ids.gpu, w.gpu);
        expect_same_bits(embedding(c(), ids.cpu, w.cpu), got, form.c_str());
      }
}

// Rows are added in the order of their tokens, as on the CPU: the same bits.
TEST_F(CudaEmbedding, BackwardHasTheBitsOfTheCpu) {
  for (const DType compute : {DType::BF16, DType::F32})
    for (const Codec codec : {Codec::Int8, Codec::Fp8, Codec::Bf16, Codec::Fp32})
      for (const bool stochastic : {true, false})
        for (const int64_t count : {1, 5, 301}) {
          start(compute, size_t{32} << 20);
          backward(count, 50, RowBlocks(150), codec, stochastic);
        }
}

TEST_F(CudaEmbedding, BackwardOfLongRunsAndWideRows) {
  for (const DType compute : {DType::BF16, DType::F32}) {
    start(compute, size_t{2} << 30);
    backward(3000, 1000, RowBlocks(2500), Codec::Int8, true);
    backward(300, 32000, RowBlocks(4096), Codec::Int8, true);
    backward(70000, 3, RowBlocks(8), Codec::Fp32, true);
  }
}

TEST_F(CudaEmbedding, PlannedBytesAreHeld) {
  expect_planned_peak([](Context& ctx) {
    const auto zeros = [&](DType dtype, Shape shape) { return ctx.arena().allocate(Owner::Operands, dtype, shape); };
    const Tensor tokens = zeros(DType::I32, {5000});
    const Weight w{zeros(DType::BF16, {50, 64}), zeros(DType::I16, {50, 64}), {}};
    const MainGrad grad{codec::allocate(ctx.arena(), Owner::Operands, Codec::Int8, 50, RowBlocks(64)), 1, true};
    embedding_backward(ctx, tokens, embedding(ctx, tokens, w), grad);
  });
}

}  // namespace
}  // namespace agoq::ops::test
