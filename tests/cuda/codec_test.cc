// Codes, scales and decoded numbers of the GPU are those of the CPU, bit for bit.
#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::Rounding;
using codec::RowBlocks;

constexpr Codec kCodecs[] = {Codec::Fp32, Codec::Bf16, Codec::Fp8,  Codec::Int8, Codec::Fp6,         Codec::Fp5,
                             Codec::Fp4,  Codec::Nf4,  Codec::Int4, Codec::Dyn8, Codec::Dyn8Unsigned};

class CudaCodec : public CudaTest, public ::testing::WithParamInterface<Codec> {
 protected:
  // Blocks of every kind in turn: of one size, over many octaves, near ties, sparse, subnormal, huge, zeros, damaged.
  Twin numbers(int64_t rows, int64_t cols, DType dtype) {
    std::normal_distribution<float> normal;
    std::mt19937_64& e = cpu->generator;
    const auto any = [&] { return std::bit_cast<float>(static_cast<uint32_t>(e())); };
    const auto one = [&](int64_t kind) -> double {
      switch (kind) {
        case 0:
          return std::ldexp(normal(e), static_cast<int>(e() % 40) - 20);
        case 1:
          return static_cast<double>(static_cast<int>(e() % 97) - 48) * 0.125;
        case 2:
          return e() % 20 ? (e() & 1 ? 0.0 : -0.0) : normal(e);
        case 3:
          return std::ldexp(normal(e), -126 - static_cast<int>(e() % 20));
        case 4:
          return (e() & 1 ? 3.4e38 : -3.4e38) * std::ldexp(static_cast<double>(e()), -64);
        case 5:
          return e() & 1 ? 0.0 : -0.0;
        case 6: {
          const float x = any();
          return std::isfinite(x) ? x : 1.0f;
        }
        case 7:
          return e() % 400 == 0 ? any() : normal(e);
        default:
          return normal(e);
      }
    };
    return twin(cpu->filled(
        {rows, cols}, [&](int64_t i) { return one(i / 128 % 12); }, dtype));
  }

  // A NaN need not have the same bits.
  void expect_same_numbers(const Tensor& want, const Tensor& got, const std::string& what) {
    const Tensor there = down(got);
    for (int64_t i = 0; i < want.count(); ++i) {
      const double a = get(want, i), b = get(there, i);
      const bool same = std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
      ASSERT_TRUE(same) << what << ": element " << i << " is " << b << ", expected " << a;
    }
  }
  void expect_same_codes(const codec::Quantized& want, const codec::Quantized& got, const std::string& what) {
    if (codec::has_scales(want.codec)) return expect_same_bits(want, got, what.c_str());
    codec::Quantized there = got;
    expect_same_numbers(want.plain(), there.plain(), what);
  }

  void check(int64_t rows, RowBlocks row, DType dtype, const Rounding& rounding) {
    const std::string what = fmt::format("{} rows of {} in segments of {}, {}, {}", rows, row.cols, row.segment,
                                         name_of(dtype), rounding.stochastic ? "stochastic" : "nearest");
    const Twin x = numbers(rows, row.cols, dtype);
    const QuantizedTwin q = kept(GetParam(), rows, row);
    codec::encode(c(), x.cpu, q.cpu, rounding);
    codec::encode(g(), x.gpu, q.gpu, rounding);
    expect_same_codes(q.cpu, q.gpu, "codes of " + what);
    const Twin back = zeros({rows, row.cols}, dtype);
    codec::decode(c(), q.cpu, back.cpu);
    codec::decode(g(), q.gpu, back.gpu);
    expect_same_numbers(back.cpu, back.gpu, "numbers of " + what);
    codec::zero(g(), q.gpu);
    codec::decode(g(), q.gpu, back.gpu);
    for (const double number : values(down(back.gpu))) ASSERT_EQ(number, 0.0) << what;
  }
};
INSTANTIATE_TEST_SUITE_P(Codecs, CudaCodec, ::testing::ValuesIn(kCodecs),
                         [](const auto& info) { return std::string(codec::name_of(info.param)); });

TEST_P(CudaCodec, AgreesWithTheCpu) {
  const std::pair<int64_t, RowBlocks> shapes[] = {{37, RowBlocks(4096)},
                                                  {3, RowBlocks(14336, 1792)},
                                                  {2, RowBlocks(11008, 1376)},
                                                  {5, RowBlocks(8 * 72, 72)},
                                                  {4, RowBlocks(2 * 333, 333)},
                                                  {300, RowBlocks(129)},
                                                  {9, RowBlocks(7)},
                                                  {1, RowBlocks(1)},
                                                  {1000, RowBlocks(1)},
                                                  {2, RowBlocks(12 * 64, 64)},
                                                  {11, RowBlocks(1280, 128)},
                                                  {1, RowBlocks(4 * 5, 5)}};
  const RandomKey key{.seed = 0x123456789abull, .step = 3, .micro_batch = 5, .tensor = 9};
  for (const auto& [rows, row] : shapes)
    for (const DType dtype : {DType::F32, DType::BF16}) {
      start(dtype, size_t{64} << 20);
      check(rows, row, dtype, Rounding::nearest());
      check(rows, row, dtype, Rounding::random(key));
      check(rows, row, dtype, {true, key, 7, 3, int64_t{1} << 33});
      if (HasFatalFailure()) return;
    }
}

TEST_P(CudaCodec, NoRowsAreNoWork) {
  const QuantizedTwin q = kept(GetParam(), 0, RowBlocks(256));
  const Tensor x = arena->allocate(Owner::Operands, DType::F32, {0, 256});
  codec::encode(g(), x, q.gpu);
  codec::decode(g(), q.gpu, x);
}

}  // namespace
}  // namespace agoq::ops::test
