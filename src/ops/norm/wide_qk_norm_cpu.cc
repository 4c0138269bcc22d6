#include "ops/norm/wide_qk_norm_cpu.h"

#include <array>
#include <cmath>

#include "ops/norm/norm_cpu.h"

namespace agoq::ops::cpu {
namespace {

// The columns of q or of k.
struct QkColumns {
  int64_t begin, count;
  float width;    // of them on all ranks
  int64_t index;  // in rows of rstd and of sums
};

std::array<QkColumns, 2> columns_of(const WideNorm& norm) {
  return {{{0, norm.heads.q_cols(), norm.q_width, 0}, {norm.heads.k_begin(), norm.heads.kv_cols(), norm.k_width, 1}}};
}

// visit(row, columns, element of [T, 2]) for q and k of every row of qkv.
template <class Visit>
void for_columns(const WideNorm& norm, int64_t rows, Visit&& visit) {
  parallel_for(rows, [&](int64_t t, int) {
    for (const QkColumns& columns : columns_of(norm)) visit(t, columns, 2 * t + columns.index);
  });
}

template <class T>
void scale(T* x, float rstd, const float* w, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] = from_float<T>(to_float(x[i]) * rstd * w[i]);
}

}  // namespace

void sum_squares(const Tensor& qkv, const WideNorm& norm, const Tensor& sums) {
  by_type(qkv.dtype, [&]<class T> {
    for_columns(norm, qkv.rows(), [&](int64_t t, const QkColumns& columns, int64_t at) {
      const T* x = qkv.as<T>() + t * qkv.cols() + columns.begin;
      sums.as<float>()[at] = sum(columns.count, [=](int64_t i) { return to_float(x[i]) * to_float(x[i]); });
    });
  });
}

void normalise_qk(const Tensor& qkv, const WideNorm& norm, const Tensor& sums, const Tensor& rstd) {
  by_type(qkv.dtype, [&]<class T> {
    for_columns(norm, qkv.rows(), [&](int64_t t, const QkColumns& columns, int64_t at) {
      const float r = 1.0f / std::sqrt(sums.as<float>()[at] / columns.width + norm.eps);
      if (rstd) rstd.as<float>()[at] = r;
      scale(qkv.as<T>() + t * qkv.cols() + columns.begin, r, norm.weights.as<float>() + columns.begin, columns.count);
    });
  });
}

void scale_qk(const Tensor& qkv, const WideNorm& norm, const Tensor& rstd) {
  by_type(qkv.dtype, [&]<class T> {
    for_columns(norm, qkv.rows(), [&](int64_t t, const QkColumns& columns, int64_t at) {
      scale(qkv.as<T>() + t * qkv.cols() + columns.begin, rstd.as<float>()[at],
            norm.weights.as<float>() + columns.begin, columns.count);
    });
  });
}

void sum_products(const Tensor& dqkv, const Tensor& qkv_before, const WideNorm& norm, const Tensor& sums) {
  by_type(dqkv.dtype, [&]<class T> {
    for_columns(norm, dqkv.rows(), [&](int64_t t, const QkColumns& columns, int64_t at) {
      const int64_t first = t * dqkv.cols() + columns.begin;
      const T *dn = dqkv.as<T>() + first, *x = qkv_before.as<T>() + first;
      const float* w = norm.weights.as<float>() + columns.begin;
      sums.as<float>()[at] = sum(columns.count, [=](int64_t i) { return to_float(dn[i]) * w[i] * to_float(x[i]); });
    });
  });
}

// With x̂ = x·rstd and g = dn·w: dw += dn·x̂, dx = rstd·(g - x̂·mean(g·x̂)).
void wide_qk_norm_backward(const Tensor& dqkv, const Tensor& qkv_before, const WideNorm& norm, const Tensor& rstd,
                           const Tensor& sums, const Tensor& dw, const Tensor& partial) {
  by_type(dqkv.dtype, [&]<class T> {
    sum_slices(dqkv.rows(), partial, dw, [&](int64_t t, float* dw_sums, int) {
      for (const QkColumns& columns : columns_of(norm)) {
        const int64_t first = t * dqkv.cols() + columns.begin, at = 2 * t + columns.index;
        const float r = rstd.as<float>()[at], mean = sums.as<float>()[at] * r / columns.width;
        const T* x = qkv_before.as<T>() + first;
        const float* w = norm.weights.as<float>() + columns.begin;
        T* d = dqkv.as<T>() + first;
        float* to = dw_sums + columns.begin;
#pragma omp simd
        for (int64_t i = 0; i < columns.count; ++i) {
          const float hat = to_float(x[i]) * r, dn = to_float(d[i]);
          to[i] += dn * hat;
          d[i] = from_float<T>(r * (dn * w[i] - hat * mean));
        }
      }
    });
  });
}

}  // namespace agoq::ops::cpu
