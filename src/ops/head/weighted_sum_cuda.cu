#include "device/cuda.h"
#include "ops/head/weighted_sum_cuda.h"

namespace agoq::ops::cuda {
namespace {

constexpr int kThreads = 1024;

// One CTA: T numbers are few. Each thread sums its stride in order, then a tree of fixed shape.
__global__ void weighted_sum_kernel(const float* values, const float* weights, int64_t n, double* total) {
  __shared__ double sums[kThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads)
    sum += static_cast<double>(weights[i]) * static_cast<double>(values[i]);
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *total += sums[0];
}

}  // namespace

void add_weighted_sum(const Context& ctx, const Tensor& values, const Tensor& weights, const Tensor& total) {
  agoq::cuda::launch(ctx, weighted_sum_kernel, 1, kThreads, values.as<float>(), weights.as<float>(), values.count(),
                     total.as<double>());
}

}  // namespace agoq::ops::cuda
