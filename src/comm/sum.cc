#include "comm/sum.h"

#include <algorithm>
#include <array>

#include "comm/sum_cuda.h"

namespace agoq::comm {
namespace {

constexpr int64_t kAtOnce = 1024;  // numbers whose sums stay in the cache while the parts go by

// What sums are made in, and back.
float widen(float x) {
  return x;
}
float widen(Bf16 x) {
  return to_float(x);
}
double widen(double x) {
  return x;
}
template <class T, class Wide>
T narrow(Wide x) {
  if constexpr (sizeof(T) == sizeof(Wide))
    return x;
  else
    return from_float<T>(x);
}

template <class T>
void sum_on_cpu(const SumParts& parts, const Tensor& out) {
  const int64_t n = out.count(), others = parts.others ? parts.others.shape[0] : 0;
  const T* const rows = parts.others ? parts.others.as<T>() : nullptr;
  const T* const own = parts.own ? parts.own.as<T>() : nullptr;
  T* const to = out.as<T>();
#pragma omp parallel for schedule(static) if (n > 1 << 14)
  for (int64_t begin = 0; begin < n; begin += kAtOnce) {
    const int64_t count = std::min(kAtOnce, n - begin);
    std::array<decltype(widen(T{})), kAtOnce> totals{};
    const auto add = [&](const T* part) {
      for (int64_t i = 0; i < count; ++i) totals[static_cast<size_t>(i)] += widen(part[begin + i]);
    };
    for (int64_t row = 0; row < parts.before; ++row) add(rows + row * n);
    if (own) add(own);
    for (int64_t row = parts.before; row < others; ++row) add(rows + row * n);
    for (int64_t i = 0; i < count; ++i) to[begin + i] = narrow<T>(totals[static_cast<size_t>(i)]);
  }
}

}  // namespace

void sum(const Context& ctx, const SumParts& parts, const Tensor& out) {
  const auto fits = [&](const Tensor& t, int64_t rows) {
    return !t || (t.dtype == out.dtype && t.count() == rows * out.count());
  };
  const int64_t others = parts.others ? parts.others.shape[0] : 0;
  require(fits(parts.others, others) && fits(parts.own, 1) && parts.count() > 0,
          "a sum of {} {} has parts of {} {} and {} {}", name_of(out.dtype), out.shape.text(),
          name_of(parts.others.dtype), parts.others.shape.text(), name_of(parts.own.dtype), parts.own.shape.text());
  require(parts.before >= 0 && parts.before <= others, "a sum has its own part behind {} of {} others", parts.before,
          others);
  require(out.dtype == DType::F32 || out.dtype == DType::BF16 || out.dtype == DType::F64,
          "a sum over ranks is fp32, bf16 or fp64, not {}", name_of(out.dtype));
  if (ctx.meta()) return;
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::sum(ctx, parts, out);
  require(ctx.device() == Device::Cpu, "a sum over ranks: this build has no kernel for device {}",
          name_of(ctx.device()));
  if (out.dtype == DType::F64) return sum_on_cpu<double>(parts, out);
  if (out.dtype == DType::F32) return sum_on_cpu<float>(parts, out);
  sum_on_cpu<Bf16>(parts, out);
}

void add(const Context& ctx, const Tensor& y, const Tensor& x) {
  sum(ctx, {y.view({1, y.count()}), x, 0}, x);
}

}  // namespace agoq::comm
