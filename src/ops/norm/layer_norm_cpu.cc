#include "ops/norm/layer_norm_cpu.h"

#include <cmath>

#include "ops/cpu.h"

namespace agoq::ops::cpu {
namespace {

template <class T>
float mean_of(const T* x, int64_t n) {
  return sum(n, [=](int64_t i) { return to_float(x[i]); }) / static_cast<float>(n);
}

float rstd_of(const float* x, float mean, int64_t n, float eps) {
  const float squares = sum(n, [=](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
  return 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
}

template <class T>
void normalise(const float* x, float mean, float rstd, int64_t n, T* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = from_float<T>((x[i] - mean) * rstd);
}

// With x̂ = (x - mean)·rstd: dx = rstd·(dn - mean(dn) - x̂·mean(dn·x̂)) (+ residual).
template <class T>
void backward_row(const T* dn, const float* x, float rstd, const T* residual, int64_t n, T* dx) {
  const float mean = mean_of(x, n), mean_dn = mean_of(dn, n);
  const float products = sum(n, [=](int64_t i) { return to_float(dn[i]) * (x[i] - mean); });
  const float mean_product = products * rstd / static_cast<float>(n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float hat = (x[i] - mean) * rstd;
    dx[i] = from_float<T>(rstd * (to_float(dn[i]) - mean_dn - hat * mean_product) +
                          (residual ? to_float(residual[i]) : 0.0f));
  }
}

}  // namespace

void layer_norm(const Tensor& x, float eps, const codec::Quantized& keep_x, const Tensor& rstd, const Tensor& n,
                const Tensor& workspace) {
  by_type(x.dtype, [&]<class T> {
    const int64_t cols = x.cols();
    parallel_for(x.rows(), [&](int64_t t, int thread) {
      const float* row = load_row(x.as<T>() + t * cols, cols, thread_row(workspace, thread));
      const float mean = mean_of(row, cols), r = rstd_of(row, mean, cols, eps);
      normalise(row, mean, r, cols, n.as<T>() + t * cols);
      if (rstd) rstd.as<float>()[t] = r;
      if (keep_x.kept()) codec::encode_row(keep_x, t, row, codec::Rounding::nearest());
    });
  });
}

void recompute_layer_norm(const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& n,
                          const Tensor& workspace) {
  by_type(n.dtype, [&]<class T> {
    const int64_t cols = n.cols();
    parallel_for(n.rows(), [&](int64_t t, int thread) {
      float* row = thread_row(workspace, thread);
      codec::decode_row(kept_x, t, row);
      normalise(row, mean_of(row, cols), rstd.as<float>()[t], cols, n.as<T>() + t * cols);
    });
  });
}

void layer_norm_backward(const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& residual,
                         const Tensor& dx, const Tensor& workspace) {
  by_type(dn.dtype, [&]<class T> {
    const int64_t cols = dn.cols();
    const T* added = residual ? residual.as<T>() : nullptr;
    parallel_for(dn.rows(), [&](int64_t t, int thread) {
      float* row = thread_row(workspace, thread);
      codec::decode_row(kept_x, t, row);
      backward_row(dn.as<T>() + t * cols, row, rstd.as<float>()[t], added ? added + t * cols : nullptr, cols,
                   dx.as<T>() + t * cols);
    });
  });
}

}  // namespace agoq::ops::cpu
