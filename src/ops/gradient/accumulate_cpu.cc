#include "ops/gradient/accumulate_cpu.h"

#include <cblas.h>

#include "ops/cpu.h"

namespace agoq::ops::cpu {
namespace {

template <class T>
void add_row(const T* delta, int64_t n, bool round, float* sum) {
  if (round) {
    for (int64_t i = 0; i < n; ++i) sum[i] += to_float(to_bf16(to_float(delta[i])));
  } else {
    for (int64_t i = 0; i < n; ++i) sum[i] += to_float(delta[i]);
  }
}

// Columns [begin, end) of rows [first, last) of x -> contiguous fp32.
void widen(const Tensor& x, int64_t first, int64_t last, int64_t begin, int64_t end, float* to) {
  const Bf16* from = x.as<Bf16>();
  parallel_for(last - first, [&](int64_t r, int) {
    const Bf16* row = from + (first + r) * x.cols();
    for (int64_t c = begin; c < end; ++c) to[r * (end - begin) + c - begin] = to_float(row[c]);
  });
}

// c [m, n] (+)= aᵀ·b; a [k, m] and b [k, n] fp32 with leading dimensions.
void product_tn(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, bool add,
                float* c) {
  const auto blas = [](int64_t i) { return static_cast<blasint>(i); };
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, blas(m), blas(n), blas(k), 1, a, blas(lda), b, blas(ldb),
              add ? 1.0f : 0.0f, c, blas(n));
}

}  // namespace

void accumulate(const Context& ctx, const MainGrad& grad, const Tensor& delta, int64_t begin, bool round,
                const Tensor& workspace) {
  const codec::Quantized& q = grad.data;
  const codec::Rounding rounding = grad.rounding(ctx.random);
  const int64_t cols = q.row.cols;
  by_type(delta.dtype, [&]<class T>() {
    const T* rows = delta.as<T>();
    parallel_for(delta.shape[0], [&](int64_t r, int thread) {
      const bool plain = q.codec == codec::Codec::Fp32;
      float* sum = plain ? reinterpret_cast<float*>(q.row_codes(begin + r)) : thread_row(workspace, thread);
      if (grad.fresh) {
        std::fill_n(sum, cols, 0.0f);
      } else if (!plain) {
        codec::decode_row(q, begin + r, sum);
      }
      add_row(rows + r * cols, cols, round, sum);
      if (!plain) codec::encode_row(q, begin + r, sum, rounding);
    });
  });
}

void dw_slab(const Tensor& dy, const Tensor& x, int64_t begin, int64_t end, bool add, float* c,
             const PanelWorkspace& workspace) {
  const int64_t tokens = x.shape[0], out = dy.cols(), in = x.cols(), rows = end - begin;
  if (x.dtype == DType::F32)
    return product_tn(rows, in, tokens, dy.as<float>() + begin, out, x.as<float>(), in, add, c);
  const int64_t panel = workspace.x.shape[0];
  for (int64_t t = 0; t < tokens; t += panel) {
    const int64_t last = std::min(t + panel, tokens);
    widen(dy, t, last, begin, end, workspace.dy.as<float>());
    widen(x, t, last, 0, in, workspace.x.as<float>());
    product_tn(rows, in, last - t, workspace.dy.as<float>(), rows, workspace.x.as<float>(), in, add || t > 0, c);
  }
}

// Groups of columns, each summed over the rows in order, in double.
void column_sums(const Tensor& x, const Tensor& out) {
  constexpr int64_t kStrip = 32;
  const int64_t cols = x.cols(), strips = (cols + kStrip - 1) / kStrip;
  by_type(x.dtype, [&]<class T>() {
    const T* numbers = x.as<T>();
    float* sums = out.as<float>();
    parallel_for(strips, [&](int64_t strip, int) {
      const int64_t begin = strip * kStrip, n = std::min(kStrip, cols - begin);
      double total[kStrip] = {};
      for (int64_t r = 0; r < x.shape[0]; ++r)
        for (int64_t i = 0; i < n; ++i) total[i] += static_cast<double>(to_float(numbers[r * cols + begin + i]));
      for (int64_t i = 0; i < n; ++i) sums[begin + i] = static_cast<float>(total[i]);
    });
  });
}

}  // namespace agoq::ops::cpu
