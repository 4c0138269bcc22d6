// Operands in 8-bit floats and their products: a GPU beside the CPU.
#include <gmock/gmock.h>

#include "base/error_of.h"
#include "cuda/pair.h"
#include "ops/linear/fp8.h"
#include "ops/linear/linear.h"

namespace agoq::ops::test {
namespace {

constexpr Granularity kGranularities[] = {Granularity::Tensor, Granularity::Row, Granularity::Block1x128,
                                          Granularity::Block128x128};

class CudaScaledProduct : public CudaTest {
 protected:
  Operand make(const Context& ctx, const Tensor& x, OperandFormat format, Major major) {
    return major == Major::K ? to_fp8(ctx, x, format) : to_fp8_transposed(ctx, x, format);
  }
  std::vector<uint8_t> bytes(const Context& ctx, const Tensor& t) {
    std::vector<uint8_t> host(t.bytes());
    download(ctx, t, host.data());
    return host;
  }
  void expect_same(const Operand& cpu, const Operand& gpu) {
    ASSERT_EQ(gpu.data.shape, cpu.data.shape);
    ASSERT_EQ(gpu.scale.shape, cpu.scale.shape);
    const std::vector<uint8_t> codes = bytes(g(), gpu.data), scales = bytes(g(), gpu.scale);
    const auto first_difference = [](const std::vector<uint8_t>& got, const uint8_t* want) {
      return std::mismatch(got.begin(), got.end(), want).first - got.begin();
    };
    EXPECT_EQ(first_difference(scales, cpu.scale.raw()), static_cast<int64_t>(scales.size())) << "scales";
    EXPECT_EQ(first_difference(codes, cpu.data.raw()), static_cast<int64_t>(codes.size())) << "codes";
  }
};

TEST_F(CudaScaledProduct, OperandsHaveTheSameBits) {
  struct Dims {
    int64_t rows, k;
  };
  for (const Dims& d : {Dims{1, 1}, Dims{3, 130}, Dims{128, 256}, Dims{200, 300}, Dims{257, 1000}})
    for (DType type : {DType::BF16, DType::F32})
      for (DType dtype : {DType::E4M3, DType::E5M2})
        for (Granularity granularity : kGranularities)
          for (Major major : {Major::K, Major::MN}) {
            SCOPED_TRACE(fmt::format("[{}, {}] {} to {} per {}, {}", d.rows, d.k, name_of(type), name_of(dtype),
                                     name_of(granularity), major == Major::K ? "as it lies" : "transposed"));
            start(type, size_t{32} << 20);
            const Shape shape = major == Major::K ? Shape{d.rows, d.k} : Shape{d.k, d.rows};
            Tensor x = cpu->random(shape);
            for (int64_t i = 0; i < x.count(); i += 3) set(x, i, get(x, i) * std::ldexp(1, -static_cast<int>(i % 40)));
            for (int64_t i = 0; i < x.count(); i += 11) set(x, i, 0);
            const Twin twins = twin(x);
            expect_same(make(c(), twins.cpu, {dtype, granularity}, major),
                        make(g(), twins.gpu, {dtype, granularity}, major));
          }
}

TEST_F(CudaScaledProduct, ZerosDamageAndExtremesHaveTheSameBits) {
  const double bad[] = {std::nan(""), std::numeric_limits<double>::infinity(), 3.3e38, 1e-38, 1e-45, -0.0, 0.0};
  for (double special : bad)
    for (Granularity granularity : kGranularities)
      for (Major major : {Major::K, Major::MN}) {
        SCOPED_TRACE(fmt::format("{} per {}, {}", special, name_of(granularity),
                                 major == Major::K ? "as it lies" : "transposed"));
        start(DType::F32, size_t{8} << 20);
        const Tensor x = cpu->zeros({160, 144});
        set(x, 5 * 144 + 9, special);
        set(x, 140 * 144 + 130, 1);
        const Twin twins = twin(x);
        expect_same(make(c(), twins.cpu, {DType::E4M3, granularity}, major),
                    make(g(), twins.gpu, {DType::E4M3, granularity}, major));
      }
}

struct Scales {
  Granularity a, b;
};
// What cuBLASLt multiplies on Hopper.
constexpr Scales kScales[] = {{Granularity::Tensor, Granularity::Tensor},
                              {Granularity::Row, Granularity::Row},
                              {Granularity::Block1x128, Granularity::Block1x128},
                              {Granularity::Block1x128, Granularity::Block128x128},
                              {Granularity::Block128x128, Granularity::Block1x128}};

TEST_F(CudaScaledProduct, IsTheProductOfTheCpu) {
  for (const Scales& scales : kScales)
    for (DType result : {DType::BF16, DType::F32})
      for (Accumulation accumulation : {Accumulation::Fp32, Accumulation::Fast}) {
        const bool blocks = scales.a != Granularity::Tensor && scales.a != Granularity::Row;
        if (blocks && accumulation == Accumulation::Fast) continue;
        SCOPED_TRACE(fmt::format("{} by {} into {}, {} sums", name_of(scales.a), name_of(scales.b), name_of(result),
                                 accumulation == Accumulation::Fast ? "fast" : "fp32"));
        start(result, size_t{64} << 20);
        const Twin x = random({256, 512}, 1, DType::BF16), w = random({384, 512}, 0.1, DType::BF16);
        const Tensor y =
            linear(c(), to_fp8(c(), x.cpu, {DType::E4M3, scales.a}), to_fp8(c(), w.cpu, {DType::E4M3, scales.b}));
        const Tensor there = linear(g(), to_fp8(g(), x.gpu, {DType::E4M3, scales.a}),
                                    to_fp8(g(), w.gpu, {DType::E4M3, scales.b}), {}, {}, accumulation);
        // The tensor cores add 128 terms with some 13 bits.
        expect_relative(y, there, accumulation == Accumulation::Fast ? 4e-3 : 2e-3, "product");
      }
}

// Forward adds along features. Their means differ from zero, but the weights' signs do not follow them, so that fast
// sums lose nothing beside the rounding of the operands, at the longest k of LLaMA3-8B.
TEST_F(CudaScaledProduct, FastSumsAreGoodEnoughForForward) {
  start(DType::F32, size_t{256} << 20);
  const int64_t tokens = 64, features = 256, k = 14336;
  const Tensor means = cpu->random({1, k}), noise = cpu->random({tokens, k}), w = cpu->random({features, k}, 0.02);
  const Tensor x = cpu->filled(
      {tokens, k}, [&](int64_t i) { return get(means, i % k) + get(noise, i); }, DType::F32);
  const Twin xs = twin(x), ws = twin(w);
  const Values exact = values(linear(c(), x, w));
  const auto error = [&](Accumulation accumulation) {
    const Values got =
        values(down(linear(g(), to_fp8(g(), xs.gpu, {}), to_fp8(g(), ws.gpu, {}), {}, {}, accumulation)));
    double off = 0, size = 0;
    for (size_t i = 0; i < exact.size(); ++i) off += std::pow(got[i] - exact[i], 2), size += exact[i] * exact[i];
    return std::sqrt(off / size);
  };
  const double slow = error(Accumulation::Fp32), fast = error(Accumulation::Fast);
  EXPECT_NEAR(slow, 0.037, 0.005);
  EXPECT_LE(fast, 1.05 * slow);
}

TEST_F(CudaScaledProduct, OtherFormatAndAddition) {
  start(DType::BF16, size_t{64} << 20);
  const Twin dy = random({144, 256}), w = random({256, 320}, 0.1), before = random({144, 320});
  linear_add(c(), to_fp8(c(), dy.cpu, {DType::E5M2, Granularity::Row}), to_fp8_transposed(c(), w.cpu, {}), before.cpu);
  linear_add(g(), to_fp8(g(), dy.gpu, {DType::E5M2, Granularity::Row}), to_fp8_transposed(g(), w.gpu, {}), before.gpu);
  expect_relative(before.cpu, before.gpu, 4e-3, "sum");
}

TEST_F(CudaScaledProduct, RefusesWhatHopperCannot) {
  start(DType::BF16, size_t{64} << 20);
  const Twin x = random({32, 64});
  Operand turned = to_fp8(g(), x.gpu, {DType::E4M3, Granularity::Tensor});
  turned.major = Major::MN;
  const Tensor c = g().empty({64, 64});
  EXPECT_THAT(error_of([&] { gemm(g(), turned, turned, c); }), testing::HasSubstr("k is the major of both"));
}

}  // namespace
}  // namespace agoq::ops::test
