// Small helpers of the CPU kernels: loops over rows, rows as fp32, scratch from the arena, a vectorisable exp.
//
// A kernel reads rows of fp32 or bf16, computes in fp32 and rounds once on store. It allocates nothing: its `.cc`
// pushes the scratch on the arena's stack, so that a dry run (Device::Meta) counts the same bytes.
#pragma once

#include <omp.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/tensor.h"
#include "device/context.h"
#include "ops/by_type.h"

namespace agoq::ops::cpu {

// What an op says for a device that this build cannot use. Call it after the shape checks and after `ctx.meta()`.
inline void require_cpu(const Context& ctx, const char* op) {
  require(ctx.device() == Device::Cpu, "{}: this build has no kernel for device {}; use --device cpu", op,
          name_of(ctx.device()));
}

// body(i, thread) for i in [0, n), divided evenly over the threads. The body must not throw.
template <class Body>
void parallel_for(int64_t n, Body&& body) {
#pragma omp parallel if (n > 1)
  {
    const int thread = omp_get_thread_num();
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) body(i, thread);
  }
}

// Part `i` of `parts` nearly equal parts of [0, n).
struct ThreadRange {
  int64_t begin, end;
};
inline ThreadRange part(int64_t n, int64_t parts, int64_t i) {
  return {n * i / parts, n * (i + 1) / parts};
}

// Sums over rows (dw of a norm, a bias gradient, a loss) are made as partial sums of at most 64 fixed slices, added in
// order: the result does not depend on the number of threads.
inline int64_t slices(int64_t rows) {
  return std::min<int64_t>(rows, 64);
}

// A temporary of the CPU kernel; none (and so not counted) when the layout of another device is planned.
inline Tensor scratch(const Context& ctx, DType dtype, Shape shape) {
  return ctx.target() == Device::Cpu ? ctx.empty(dtype, shape) : Tensor{};
}
// fp32 numbers for every thread, `floats` of them each; rows start on 64-byte lines.
inline Tensor thread_scratch(const Context& ctx, int64_t floats) {
  return scratch(ctx, DType::F32, {omp_get_max_threads(), (floats + 15) / 16 * 16});
}
inline float* thread_row(const Tensor& per_thread, int thread) {
  return per_thread.as<float>() + thread * per_thread.cols();
}

// A row as fp32 numbers: the row itself if it holds them, otherwise widened into `workspace`.
inline const float* load_row(const float* x, int64_t, float*) {
  return x;
}
inline const float* load_row(const Bf16* x, int64_t n, float* workspace) {
  for (int64_t i = 0; i < n; ++i) workspace[i] = to_float(x[i]);
  return workspace;
}
// Where to compute a row that will be stored as T: the row itself, or `workspace`; store_row then rounds it into its
// place.
inline float* open_row(float* y, float*) {
  return y;
}
inline float* open_row(Bf16*, float* workspace) {
  return workspace;
}
inline void store_row(const float* from, int64_t n, float* y) {
  if (from != y) std::memcpy(y, from, static_cast<size_t>(n) * sizeof(float));
}
inline void store_row(const float* from, int64_t n, Bf16* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = to_bf16(from[i]);
}

// Σ term(i) over [0, n) in an order fixed by n alone, whatever the vector width of the machine: 32 interleaved partial
// sums, then their tree.
template <class Term>
inline float sum(int64_t n, Term&& term) {
  constexpr int kLanes = 32;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += term(i + l);
  for (int l = 0; i < n; ++i, ++l) lanes[l] += term(i);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// exp(x) within 2 units in the last place over the whole range, without branches or calls, so that loops over it become
// vector code. Overflows to Inf, underflows gradually to 0, NaN stays NaN.
//
// x = n·ln2 + r, |r| <= ln2/2: exp(x) = 2^n · (1 + r + r²·p(r)), p fitted to least relative error. ln2 is split so that
// n·ln2_high is exact; 2^n is applied in two halves because n reaches 128 and -150.
inline float fast_exp(float x) {
  constexpr float kLog2e = 0x1.715476p+0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, which then lies in the low mantissa bits
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const float shifted = x * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  const float p =
      0x1.fffffcp-2f + r * (0x1.55549p-3f + r * (0x1.5558fcp-5f + r * (0x1.123b9ap-7f + r * 0x1.6a215ap-10f)));
  const float y = 1.0f + (r + r * r * p);
  const int32_t power = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
  const int32_t half = power >> 1;
  const float scale1 = std::bit_cast<float>(static_cast<uint32_t>(half + 127) << 23);
  const float scale2 = std::bit_cast<float>(static_cast<uint32_t>(power - half + 127) << 23);
  return y * scale1 * scale2;
}

inline float sigmoid(float x) {
  return 1.0f / (1.0f + fast_exp(-x));
}

}  // namespace agoq::ops::cpu
