#include "ops/head/weighted_sum.h"

#include "ops/cpu.h"
#include "ops/head/weighted_sum_cuda.h"

namespace agoq::ops {

void add_weighted_sum(const Context& ctx, const Tensor& values, const Tensor& weights, const Tensor& total) {
  require(values.dtype == DType::F32 && weights.dtype == DType::F32 && values.shape == weights.shape,
          "weighted_sum: values {} {} and weights {} {} are not both fp32 of one shape", name_of(values.dtype),
          values.shape.text(), name_of(weights.dtype), weights.shape.text());
  require(total.dtype == DType::F64 && total.count() == 1, "weighted_sum: the total is {} {}, not one fp64 number",
          name_of(total.dtype), total.shape.text());
  if (ctx.meta()) return;
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::add_weighted_sum(ctx, values, weights, total);
  cpu::require_cpu(ctx, "weighted_sum");
  const float *value = values.as<float>(), *weight = weights.as<float>();
  double sum = 0;
  for (int64_t i = 0; i < values.count(); ++i) sum += static_cast<double>(weight[i]) * static_cast<double>(value[i]);
  *total.as<double>() += sum;
}

}  // namespace agoq::ops
