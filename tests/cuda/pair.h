// The same op on the CPU, which is the reference, and on the GPU: two contexts, and tensors that exist on both.
#pragma once

#include <cstring>
#include <memory>

#include "device/transfer.h"
#include "ops/support.h"

namespace agoq::ops::test {

// One GPU for all tests of the binary, or why there is none.
inline Gpu* the_gpu() {
  if constexpr (kCudaBuild) {
    static const std::unique_ptr<Gpu> gpu = why_no_gpu().empty() ? std::make_unique<Gpu>() : nullptr;
    return gpu.get();
  }
  return nullptr;
}

// A tensor with its twin on the GPU.
struct Twin {
  Tensor cpu, gpu;
};
struct QuantizedTwin {
  codec::Quantized cpu, gpu;
};
struct GradTwin {
  MainGrad cpu, gpu;
};

// Fixture of tests that need a GPU; they skip, visibly, without one. `compute` may be changed by start().
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!the_gpu()) GTEST_SKIP() << "no GPU: " << (kCudaBuild ? "none is visible" : "this build has no CUDA backend");
    start(DType::BF16);
  }

  // Fresh arenas and contexts.
  void start(DType compute, size_t capacity = size_t{512} << 20) {
    gpu_ctx_.reset();
    cpu = std::make_unique<TestContext>(compute, Device::Cpu, capacity);
    arena = std::make_unique<Arena>(*the_gpu(), capacity);
    gpu_ctx_ = std::make_unique<Context>(*arena, Device::Cuda, compute);
  }
  Context& c() const { return cpu->ctx; }
  Context& g() const { return *gpu_ctx_; }

  // --- inputs: made on the CPU, copied to the GPU
  Twin twin(const Tensor& t) {
    Tensor on_gpu = arena->allocate(Owner::Operands, t.dtype, t.shape);
    upload(g(), t.data, on_gpu);
    return {t, on_gpu};
  }
  Twin random(Shape shape, double scale, DType dtype) { return twin(cpu->random(shape, scale, dtype)); }
  Twin random(Shape shape, double scale = 1) { return twin(cpu->random(shape, scale)); }
  Twin zeros(Shape shape, DType dtype) { return twin(cpu->zeros(shape, dtype)); }
  QuantizedTwin kept(codec::Codec codec, int64_t rows, codec::RowBlocks row) {
    QuantizedTwin q{cpu->kept(codec, rows, row), codec::allocate(*arena, Owner::Operands, codec, rows, row)};
    copy_up(q);
    return q;
  }
  // Codes of random numbers, encoded on the CPU.
  QuantizedTwin encoded(const Tensor& x, codec::Codec codec, codec::RowBlocks row) {
    QuantizedTwin q = kept(codec, x.rows(), row);
    codec::encode(c(), x, q.cpu);
    copy_up(q);
    return q;
  }
  void copy_up(const QuantizedTwin& q) {
    if (!q.cpu.kept()) return;
    upload(g(), q.cpu.codes.data, q.gpu.codes);
    if (q.cpu.scales) upload(g(), q.cpu.scales.data, q.gpu.scales);
  }
  // A zero main gradient.
  GradTwin grad(int64_t rows, codec::RowBlocks row, codec::Codec codec = codec::Codec::Fp32, bool stochastic = true) {
    const QuantizedTwin q = kept(codec, rows, row);
    return {{q.cpu, 7, stochastic}, {q.gpu, 7, stochastic}};
  }
  void documents(const std::vector<int32_t>& positions, const std::vector<int32_t>& starts) {
    const auto ints = [&](const std::vector<int32_t>& v) {
      return twin(cpu->filled(
          {static_cast<int64_t>(v.size())}, [&](int64_t i) { return v[static_cast<size_t>(i)]; }, DType::I32));
    };
    const Twin p = ints(positions), s = ints(starts);
    c().positions = p.cpu, g().positions = p.gpu;
    c().document_start = s.cpu, g().document_start = s.gpu;
  }

  // --- results
  // A copy on the host of what the GPU holds.
  Tensor down(const Tensor& t) {
    Tensor copy = cpu->arena.allocate(Owner::Operands, t.dtype, t.shape);
    download(g(), t, copy.data);
    return copy;
  }
  codec::Quantized down(const codec::Quantized& q) {
    codec::Quantized copy = q;
    copy.device = Device::Cpu;
    copy.codes = down(q.codes);
    if (q.scales) copy.scales = down(q.scales);
    return copy;
  }
  void expect_same_bits(const Tensor& want, const Tensor& got, const char* what) {
    const Tensor there = down(got);
    ASSERT_EQ(want.bytes(), there.bytes()) << what;
    int64_t different = 0, first = -1;
    for (size_t i = 0; i < want.bytes(); ++i)
      if (want.raw()[i] != there.raw()[i] && different++ == 0) first = static_cast<int64_t>(i);
    EXPECT_EQ(different, 0) << what << ": bytes differ, the first is " << first << " of " << want.bytes();
  }
  void expect_same_bits(const codec::Quantized& want, const codec::Quantized& got, const char* what) {
    if (!want.kept()) return;
    expect_same_bits(want.codes, got.codes, what);
    if (want.scales) expect_same_bits(want.scales, got.scales, what);
  }
  // Each element within `roundings` roundings of the type it is stored in (see expect_close_as).
  void expect_near(const Tensor& want, const Tensor& got, double roundings = 2, const char* what = "") {
    expect_close_as(down(got), values(want), roundings, what);
  }
  // The same for sums whose partial sums a GPU may round before it adds the last: one rounding more, of the largest.
  void expect_near_sum(const Tensor& want, const Tensor& got, const char* what) {
    const Values expected = values(want);
    const double rounding = want.dtype == DType::BF16 ? 0x1p-8 : 0x1p-20;
    expect_close(values(down(got)), expected, 2.02 * rounding, rounding * largest(expected), what);
  }
  // ‖got - want‖ / ‖want‖ <= bound.
  void expect_relative(const Values& want, const Values& got, double bound, const char* what) {
    double error = 0, size = 0;
    ASSERT_EQ(want.size(), got.size());
    for (size_t i = 0; i < want.size(); ++i)
      error += (got[i] - want[i]) * (got[i] - want[i]), size += want[i] * want[i];
    EXPECT_LE(std::sqrt(error), bound * std::sqrt(size)) << what << ": relative error " << std::sqrt(error / size);
  }
  void expect_relative(const Tensor& want, const Tensor& got, double bound, const char* what = "") {
    expect_relative(values(want), values(down(got)), bound, what);
  }

  // The same calls on the GPU and in a dry run for one must push the same peak.
  void expect_planned_peak(const std::function<void(Context&)>& run) {
    Arena gpu(*the_gpu(), arena->capacity()), plan(Device::Meta, 0);
    Context on_gpu(gpu, Device::Cuda, g().compute()), planned(plan, Device::Cuda, g().compute());
    run(on_gpu);
    run(planned);
    EXPECT_EQ(gpu.peak_stack_bytes(), plan.peak_stack_bytes());
  }

  std::unique_ptr<TestContext> cpu;
  std::unique_ptr<Arena> arena;

 private:
  std::unique_ptr<Context> gpu_ctx_;
};

}  // namespace agoq::ops::test
