// What tests of ops share: a context with an arena, random tensors, comparison with a double reference, numeric
// gradients.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "codec/codec.h"
#include "device/context.h"
#include "ops/gradient/accumulate.h"

namespace agoq::ops::test {

using Values = std::vector<double>;

inline double get(const Tensor& t, int64_t i) {
  switch (t.dtype) {
    case DType::F32:
      return t.as<float>()[i];
    case DType::BF16:
      return to_float(t.as<Bf16>()[i]);
    case DType::I32:
      return t.as<int32_t>()[i];
    default:
      fail("a test reads fp32, bf16 or int32, not {}", name_of(t.dtype));
  }
}
inline void set(const Tensor& t, int64_t i, double x) {
  switch (t.dtype) {
    case DType::F32:
      t.as<float>()[i] = static_cast<float>(x);
      break;
    case DType::BF16:
      t.as<Bf16>()[i] = to_bf16(static_cast<float>(x));
      break;
    case DType::I32:
      t.as<int32_t>()[i] = static_cast<int32_t>(x);
      break;
    default:
      fail("a test writes fp32, bf16 or int32, not {}", name_of(t.dtype));
  }
}
inline Values values(const Tensor& t) {
  Values all(static_cast<size_t>(t.count()));
  for (int64_t i = 0; i < t.count(); ++i) all[static_cast<size_t>(i)] = get(t, i);
  return all;
}

// An arena and a context on it. Inputs are owned tensors, so that the stack holds only what ops push; on Device::Meta
// the same calls make tensors without memory.
class TestContext {
 public:
  explicit TestContext(DType compute = DType::F32, Device device = Device::Cpu, size_t capacity = size_t{256} << 20)
      : arena(device, capacity), ctx(arena, Device::Cpu, compute) {}

  Tensor zeros(Shape shape, DType dtype) { return arena.allocate(Owner::Operands, dtype, shape); }
  Tensor zeros(Shape shape) { return zeros(shape, ctx.compute()); }
  Tensor filled(Shape shape, const std::function<double(int64_t)>& f, DType dtype) {
    Tensor t = zeros(shape, dtype);
    for (int64_t i = 0; t.data && i < t.count(); ++i) set(t, i, f(i));
    return t;
  }
  // Gaussian, rounded to the type it is stored in.
  Tensor random(Shape shape, double scale, DType dtype) {
    std::normal_distribution<double> normal(0, scale);
    return filled(
        shape, [&](int64_t) { return normal(generator); }, dtype);
  }
  Tensor random(Shape shape, double scale = 1) { return random(shape, scale, ctx.compute()); }

  codec::Quantized kept(codec::Codec codec, int64_t rows, codec::RowBlocks row) {
    return codec::allocate(arena, Owner::Operands, codec, rows, row);
  }
  // A plain fp32 main gradient, zero.
  MainGrad grad(int64_t rows, int64_t cols) {
    return MainGrad{codec::allocate(arena, Owner::Operands, codec::Codec::Fp32, rows, codec::RowBlocks(cols)), 1, true};
  }
  // What a kept tensor holds, as fp32 [rows, cols].
  Tensor decoded(const codec::Quantized& q) {
    Tensor t = zeros({q.rows, q.row.cols}, DType::F32);
    for (int64_t r = 0; t.data && r < q.rows; ++r) codec::decode_row(q, r, t.as<float>() + r * q.row.cols);
    return t;
  }

  Arena arena;
  Context ctx;
  std::mt19937_64 generator{12345};
};

inline double largest(const Values& x) {
  double most = 0;
  for (double v : x) most = std::max(most, std::abs(v));
  return most;
}

// |got - want| <= relative · |want| + absolute for every element; reports the worst.
inline void expect_close(const Values& got, const Values& want, double relative, double absolute,
                         const char* what = "") {
  ASSERT_EQ(got.size(), want.size()) << what;
  size_t worst = 0;
  double excess = -1;
  for (size_t i = 0; i < got.size(); ++i) {
    const double over = std::abs(got[i] - want[i]) - (relative * std::abs(want[i]) + absolute);
    if (!(over <= excess)) {  // NaN counts as worst
      excess = over;
      worst = i;
      if (std::isnan(over)) break;
    }
  }
  if (!got.empty()) {
    EXPECT_LE(excess, 0.0) << what << ": element " << worst << " is " << got[worst] << ", expected " << want[worst];
  }
}
inline void expect_close(const Tensor& got, const Values& want, double relative, double absolute,
                         const char* what = "") {
  expect_close(values(got), want, relative, absolute, what);
}
// Every element to `roundings` bf16 roundings (2^-8 each: 8 significant bits) or, in fp32, to 1e-5, both of its own
// size, plus a small part of the largest, or of `summands`, the size of what cancelled on the way.
inline void expect_close_as(const Tensor& got, const Values& want, double roundings = 1, const char* what = "",
                            double summands = 0) {
  const bool bf16 = got.dtype == DType::BF16;
  const double step = bf16 ? roundings * 0x1p-8 * 1.01 : 1e-5;
  expect_close(got, want, step, (bf16 ? step * 0.01 : 1e-6) * std::max(largest(want), summands), what);
}

using Loss = std::function<double(const Values&)>;

// Gradient of a loss by central differences. The loss is a reference in double, so that the step can be small:
// with h = 1e-4 truncation and cancellation stay below 1e-7 relative for smooth losses of size 1.
inline Values numeric_gradient(const Loss& loss, Values x, double h = 1e-4) {
  Values gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double middle = x[i];
    x[i] = middle + h;
    const double above = loss(x);
    x[i] = middle - h;
    const double below = loss(x);
    x[i] = middle;
    gradient[i] = (above - below) / (2 * h);
  }
  return gradient;
}

inline double dot(const Values& a, const Values& b) {
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

// Runs the same calls on the CPU and on Meta: both must push the same peak, and Meta must not touch memory.
inline void expect_same_peak(DType compute, const std::function<void(TestContext&)>& run) {
  TestContext cpu(compute), meta(compute, Device::Meta);
  run(cpu);
  run(meta);
  EXPECT_EQ(cpu.arena.peak_stack_bytes(), meta.arena.peak_stack_bytes());
  EXPECT_EQ(cpu.arena.owned_bytes(), meta.arena.owned_bytes());
}

// The value of f() under a given number of threads.
template <class F>
auto with_threads(int threads, F&& f) {
  struct Restore {
    int before = omp_get_max_threads();
    ~Restore() { omp_set_num_threads(before); }
  } restore;
  omp_set_num_threads(threads);
  return f();
}

}  // namespace agoq::ops::test
