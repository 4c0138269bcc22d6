#include "ops/linear/weight_cpu.h"

#include <algorithm>

#include "ops/cpu.h"

namespace agoq::ops::cpu {
namespace {

// All forms round alike (ties up, as the split does), so that GEMMs read the same bits whichever way a weight is held.
Bf16 high_half(float x) {
  Bf16 high;
  int16_t low;
  split_fp32(x, high, low);
  return high;
}

constexpr bool finite(Bf16 x) {
  return (x.bits & 0x7f80u) != 0x7f80u;
}
bool finite(float x) {
  return (std::bit_cast<uint32_t>(x) & 0x7f800000u) != 0x7f800000u;
}

// write(i, joined value) for every element.
template <class Write>
void for_values(const Weight& w, Write&& write) {
  const int64_t n = w.value.count();
  if (w.correction) {
    const Bf16* high = w.value.as<Bf16>();
    const int16_t* low = w.correction.as<int16_t>();
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; ++i) write(i, join_fp32(high[i], low[i]));
  } else {
    const float* value = (w.master ? w.master : w.value).as<float>();
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; ++i) write(i, value[i]);
  }
}

}  // namespace

void read_weight(const Weight& w, const Tensor& out) {
  if (out.dtype == DType::F32) {
    float* to = out.as<float>();
    for_values(w, [=](int64_t i, float x) { to[i] = x; });
  } else {
    Bf16* to = out.as<Bf16>();
    for_values(w, [=](int64_t i, float x) { to[i] = high_half(x); });
  }
}

int64_t write_weight(const Weight& w, const float* values) {
  const int64_t n = w.value.count();
  int64_t bad = n;
  if (w.value.dtype == DType::F32) {
    std::copy_n(values, n, w.value.as<float>());
    return -1;
  }
  Bf16* high = w.value.as<Bf16>();
  int16_t* low = w.correction ? w.correction.as<int16_t>() : nullptr;
#pragma omp parallel for schedule(static) reduction(min : bad)
  for (int64_t i = 0; i < n; ++i) {
    int16_t rest;
    split_fp32(values[i], high[i], rest);
    if (low) low[i] = rest;
    if (!finite(values[i]) || !finite(high[i])) bad = std::min(bad, i);
  }
  if (w.master) std::copy_n(values, n, w.master.as<float>());
  return bad == n ? -1 : bad;
}

void normal_rows(const NormalRows& numbers, const Tensor& out) {
  const int64_t cols = out.cols(), end = numbers.first_col + cols;
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < out.rows(); ++r) {
    float* to = out.as<float>() + r * cols;
    for (int64_t group = numbers.first_col / 4; group * 4 < end; ++group) {
      const auto four = numbers.four(numbers.first_row + r, group);
      for (int64_t c = std::max(group * 4, numbers.first_col); c < std::min(group * 4 + 4, end); ++c)
        to[c - numbers.first_col] = four[static_cast<size_t>(c - group * 4)];
    }
  }
}

}  // namespace agoq::ops::cpu
