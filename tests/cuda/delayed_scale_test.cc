// Scales that are known before a tensor is made: casts, amaxes and histories of a GPU have the bits of the CPU.
#include <limits>

#include "cuda/pair.h"
#include "ops/linear/delayed_scale.h"
#include "ops/linear/fp8.h"

namespace agoq::ops::test {
namespace {

class CudaDelayedScale : public CudaTest {
 protected:
  struct SiteTwin {
    ScaleSite cpu, gpu;
  };
  SiteTwin site(float scale, bool known) {
    const Twin s = twin(cpu->filled(
        {1}, [&](int64_t) { return scale; }, DType::F32));
    const Twin amax = zeros({1}, DType::F32);
    return {{s.cpu, amax.cpu, known}, {s.gpu, amax.gpu, known}};
  }
};

// Also with a scale under which numbers saturate, and with one that is not known.
TEST_F(CudaDelayedScale, CastsAndAmaxesHaveTheBitsOfTheCpu) {
  for (const Shape& shape : {Shape{1, 16}, Shape{131, 256}, Shape{70, 144}, Shape{33, 5120}})
    for (const DType dtype : {DType::E4M3, DType::E5M2})
      for (const bool turned : {false, true})
        for (const float scale : {0.0f, std::ldexp(1.0f, -7), std::ldexp(1.0f, -16)}) {
          SCOPED_TRACE(fmt::format("{} {} turned {} scale {}", shape.text(), name_of(dtype), turned, scale));
          start(DType::BF16);
          const Twin x = twin(cpu->random(shape));
          const SiteTwin s = site(scale, scale > 0);
          const OperandFormat format{dtype, Granularity::Tensor};
          const auto operand = [&](const Tensor& t) { return turned ? transposed(t) : Operand(t); };
          const Operand want = to_fp8(c(), operand(x.cpu), format, s.cpu);
          const Operand got = to_fp8(g(), operand(x.gpu), format, s.gpu);
          expect_same_bits(want.scale, got.scale, "scale");
          expect_same_bits(want.data, got.data, "codes");
          expect_same_bits(s.cpu.amax, s.gpu.amax, "amax");
        }
}

TEST_F(CudaDelayedScale, ANumberThatIsNotFiniteMakesTheScaleNaN) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")})
    for (const bool turned : {false, true}) {
      start(DType::BF16);
      const Tensor x = cpu->random({70, 144});
      set(x, 5000, bad);
      const Twin twins = twin(x);
      const SiteTwin s = site(0.5f, true);
      to_fp8(g(), turned ? transposed(twins.gpu) : Operand(twins.gpu), {DType::E4M3, Granularity::Tensor}, s.gpu);
      EXPECT_TRUE(std::isnan(*down(s.gpu.scale).as<float>()));
      EXPECT_FALSE(std::isfinite(*down(s.gpu.amax).as<float>()));
    }
}

TEST_F(CudaDelayedScale, HistoriesHaveTheBitsOfTheCpu) {
  for (const int64_t length : {int64_t{1}, int64_t{3}, int64_t{256}, int64_t{1024}})
    for (const bool most_recent : {false, true}) {
      SCOPED_TRACE(fmt::format("{} steps, most recent {}", length, most_recent));
      start(DType::BF16);
      constexpr int64_t kSites = 12, kRanks = 2;
      const DelayedScaling how{length, most_recent, 2};
      const Twin history = twin(cpu->filled(
          {kSites, length}, [](int64_t i) { return std::ldexp(1.0 + static_cast<double>(i % 7), i % 19 - 9); },
          DType::F32));
      const Twin scales = zeros(scales_shape(kSites), DType::F32);
      for (int step = 0; step < 4; ++step) {
        const Tensor amaxes = cpu->random({kRanks, kSites}, 3, DType::F32);
        for (int64_t i = 0; i < amaxes.count(); ++i) set(amaxes, i, std::abs(get(amaxes, i)));
        set(amaxes, 3, 0), set(amaxes, kSites + 3, 0);
        set(amaxes, 5, std::nan("")), set(amaxes, 7, std::numeric_limits<double>::infinity());
        const Twin twins = twin(amaxes);
        const std::array formats = {DType::E4M3, DType::E4M3, DType::E5M2};
        const bool remember = step != 2;
        make_scales(c(), twins.cpu, remember, how, formats, {history.cpu, scales.cpu});
        make_scales(g(), twins.gpu, remember, how, formats, {history.gpu, scales.gpu});
        expect_same_bits(history.cpu, history.gpu, "history");
        expect_same_bits(scales.cpu, scales.gpu, "scales");
      }
    }
}

}  // namespace
}  // namespace agoq::ops::test
