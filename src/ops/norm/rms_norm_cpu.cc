#include "ops/norm/rms_norm_cpu.h"

#include <cmath>

#include "ops/norm/norm_cpu.h"

namespace agoq::ops::cpu {
namespace {

template <class T>
float rstd_of(const T* x, int64_t n, float eps) {
  const float squares = sum(n, [=](int64_t i) { return to_float(x[i]) * to_float(x[i]); });
  return 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
}

// y = x · rstd · w; y may be x.
template <class X, class Y>
void normalise(const X* x, float rstd, const float* w, int64_t n, Y* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = from_float<Y>(to_float(x[i]) * rstd * w[i]);
}

// With x̂ = x·rstd and g = dn·w: dw += dn·x̂, dx = rstd·(g - x̂·mean(g·x̂)) (+ residual); dx may be dn.
template <class X, class T>
void backward_row(const T* dn, const X* x, float rstd, const float* w, const T* residual, int64_t n, T* dx, float* dw) {
  const float total = sum(n, [=](int64_t i) { return to_float(dn[i]) * w[i] * to_float(x[i]); });
  const float mean = total * rstd / static_cast<float>(n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float hat = to_float(x[i]) * rstd, d = to_float(dn[i]);
    dw[i] += d * hat;
    dx[i] = from_float<T>(rstd * (d * w[i] - hat * mean) + (residual ? to_float(residual[i]) : 0.0f));
  }
}

// Calls visit(first column, row of w, index) for every query and key head.
template <class Visit>
void for_heads(const Heads& heads, Visit&& visit) {
  for (int64_t h = 0; h < heads.query + heads.kv; ++h) visit(h * heads.dim, h < heads.query ? 0 : 1, h);
}

}  // namespace

void widen(const Tensor& from, const Tensor& to) {
  by_type(from.dtype, [&]<class T> {
    const T* x = from.as<T>();
    for (int64_t i = 0; i < from.count(); ++i) to.as<float>()[i] = to_float(x[i]);
  });
}

void rms_norm(const Tensor& x, const Tensor& w, float eps, const codec::Quantized& keep_x, const Tensor& rstd,
              const Tensor& n, const Tensor& workspace) {
  by_type(x.dtype, [&]<class T> {
    const int64_t cols = x.cols();
    parallel_for(x.rows(), [&](int64_t t, int thread) {
      const float* row = load_row(x.as<T>() + t * cols, cols, thread_row(workspace, thread));
      const float r = rstd_of(row, cols, eps);
      normalise(row, r, w.as<float>(), cols, n.as<T>() + t * cols);
      if (rstd) rstd.as<float>()[t] = r;
      if (keep_x.kept()) codec::encode_row(keep_x, t, row, codec::Rounding::nearest());
    });
  });
}

void recompute_rms_norm(const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w, const Tensor& n,
                        const Tensor& workspace) {
  by_type(n.dtype, [&]<class T> {
    const int64_t cols = n.cols();
    parallel_for(n.rows(), [&](int64_t t, int thread) {
      float* row = thread_row(workspace, thread);
      codec::decode_row(kept_x, t, row);
      normalise(row, rstd.as<float>()[t], w.as<float>(), cols, n.as<T>() + t * cols);
    });
  });
}

void rms_norm_backward(const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w,
                       const Tensor& residual, const Tensor& dx, const Tensor& dw, const Tensor& partial,
                       const Tensor& workspace) {
  by_type(dn.dtype, [&]<class T> {
    const int64_t cols = dn.cols();
    const T* added = residual ? residual.as<T>() : nullptr;
    sum_slices(dn.rows(), partial, dw, [&](int64_t t, float* sums, int thread) {
      float* row = thread_row(workspace, thread);
      codec::decode_row(kept_x, t, row);
      backward_row(dn.as<T>() + t * cols, row, rstd.as<float>()[t], w.as<float>(), added ? added + t * cols : nullptr,
                   cols, dx.as<T>() + t * cols, sums);
    });
  });
}

void qk_norm(const Tensor& qkv, const Heads& heads, const Tensor& w, float eps, const Tensor& rstd) {
  by_type(qkv.dtype, [&]<class T> {
    parallel_for(qkv.rows(), [&](int64_t t, int) {
      for_heads(heads, [&](int64_t column, int64_t kind, int64_t h) {
        T* head = qkv.as<T>() + t * qkv.cols() + column;
        const float r = rstd_of(head, heads.dim, eps);
        if (rstd) rstd.as<float>()[t * rstd.cols() + h] = r;
        normalise(head, r, w.as<float>() + kind * heads.dim, heads.dim, head);
      });
    });
  });
}

void recompute_qk_norm(const Tensor& qkv, const Heads& heads, const Tensor& w, const Tensor& rstd) {
  by_type(qkv.dtype, [&]<class T> {
    parallel_for(qkv.rows(), [&](int64_t t, int) {
      for_heads(heads, [&](int64_t column, int64_t kind, int64_t h) {
        T* head = qkv.as<T>() + t * qkv.cols() + column;
        normalise(head, rstd.as<float>()[t * rstd.cols() + h], w.as<float>() + kind * heads.dim, heads.dim, head);
      });
    });
  });
}

void qk_norm_backward(const Tensor& dqkv, const Tensor& qkv_before, const Heads& heads, const Tensor& w,
                      const Tensor& rstd, const Tensor& dw, const Tensor& partial) {
  by_type(dqkv.dtype, [&]<class T> {
    const int64_t cols = dqkv.cols();
    sum_slices(dqkv.rows(), partial, dw, [&](int64_t t, float* sums, int) {
      for_heads(heads, [&](int64_t column, int64_t kind, int64_t h) {
        T* d = dqkv.as<T>() + t * cols + column;
        const T* x = qkv_before.as<T>() + t * cols + column;
        backward_row(d, x, rstd.as<float>()[t * rstd.cols() + h], w.as<float>() + kind * heads.dim,
                     static_cast<const T*>(nullptr), heads.dim, d, sums + kind * heads.dim);
      });
    });
  });
}

}  // namespace agoq::ops::cpu
