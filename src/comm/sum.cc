#include "comm/sum.h"

#include <vector>

#include "comm/sum_cuda.h"

namespace agoq::comm {
namespace {

template <class T, class Wide>
void sum_on_cpu(std::span<const Tensor> parts, const Tensor& out) {
  std::vector<const T*> from;
  for (const Tensor& part : parts) from.push_back(part.as<T>());
  T* const to = out.as<T>();
#pragma omp parallel for schedule(static) if (out.count() > 1 << 14)
  for (int64_t i = 0; i < out.count(); ++i) {
    Wide total = 0;
    for (const T* x : from) total += to_float(x[i]);
    to[i] = from_float<T>(total);
  }
}

void sum_doubles(std::span<const Tensor> parts, const Tensor& out) {
  for (int64_t i = 0; i < out.count(); ++i) {
    double total = 0;
    for (const Tensor& part : parts) total += part.as<double>()[i];
    out.as<double>()[i] = total;
  }
}

}  // namespace

void sum(const Context& ctx, std::span<const Tensor> parts, const Tensor& out) {
  for (const Tensor& part : parts)
    require(part.dtype == out.dtype && part.count() == out.count(), "a sum of {} {} has a part of {} {}",
            name_of(out.dtype), out.shape.text(), name_of(part.dtype), part.shape.text());
  require(out.dtype == DType::F32 || out.dtype == DType::BF16 || out.dtype == DType::F64,
          "a sum over ranks is fp32, bf16 or fp64, not {}", name_of(out.dtype));
  if (ctx.meta()) return;
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::sum(ctx, parts, out);
  require(ctx.device() == Device::Cpu, "a sum over ranks: this build has no kernel for device {}",
          name_of(ctx.device()));
  if (out.dtype == DType::F64) return sum_doubles(parts, out);
  if (out.dtype == DType::F32) return sum_on_cpu<float, float>(parts, out);
  sum_on_cpu<Bf16, float>(parts, out);
}

}  // namespace agoq::comm
