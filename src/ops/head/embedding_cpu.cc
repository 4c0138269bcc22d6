#include "ops/head/embedding_cpu.h"

#include <type_traits>

#include "ops/cpu.h"

namespace agoq::ops::cpu {
namespace {

// A weight in the compute type; all forms round to bf16 as the split does (ties up).
template <class Out>
Out rounded(float x) {
  if constexpr (std::is_same_v<Out, float>) return x;
  Bf16 high;
  int16_t low;
  split_fp32(x, high, low);
  return from_float<Out>(to_float(high));
}

// Row `row` of the weight, exactly if `exact` (fp32 compute), otherwise what GEMMs read.
template <class Out>
void gather_row(const Weight& w, bool exact, int64_t row, Out* out) {
  const int64_t cols = w.value.cols(), first = row * cols;
  const auto* value = static_cast<const Bf16*>(w.value.data) + first;
  if (w.value.dtype == DType::F32) {
    const float* from = static_cast<const float*>(w.value.data) + first;
    for (int64_t i = 0; i < cols; ++i) out[i] = rounded<Out>(from[i]);
  } else if (exact && w.master) {
    store_row(static_cast<const float*>(w.master.data) + first, cols, out);
  } else if (exact && w.correction) {
    const auto* low = static_cast<const int16_t*>(w.correction.data) + first;
    for (int64_t i = 0; i < cols; ++i) out[i] = from_float<Out>(join_fp32(value[i], low[i]));
  } else {
    for (int64_t i = 0; i < cols; ++i) out[i] = from_float<Out>(to_float(value[i]));
  }
}

// Fills `segments` with the borders of runs of equal tokens in the sorted order; returns how many runs there are.
int64_t find_runs(const int64_t* order, int64_t count, int32_t* segments) {
  int64_t runs = 0;
  for (int64_t i = 0; i < count; ++i)
    if (i == 0 || order[i] >> 32 != order[i - 1] >> 32) segments[runs++] = static_cast<int32_t>(i);
  segments[runs] = static_cast<int32_t>(count);
  return runs;
}

}  // namespace

void embedding(const Tensor& tokens, const Weight& w, int64_t first, const Tensor& out) {
  const int32_t* ids = tokens.as<int32_t>();
  by_type(out.dtype, [&]<class T>() {
    T* rows = out.as<T>();
    const bool exact = std::is_same_v<T, float>;
    parallel_for(tokens.shape[0], [&](int64_t t, int) {
      const int64_t row = ids[t] - first;
      T* const to = rows + t * out.cols();
      if (row >= 0 && row < w.value.shape[0])
        gather_row(w, exact, row, to);
      else
        std::fill_n(to, out.cols(), T{});
    });
  });
}

void embedding_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, const MainGrad& grad, int64_t first,
                        const EmbeddingBackwardScratch& scratch) {
  const int64_t cols = dx.cols();
  const int32_t* ids = tokens.as<int32_t>();
  int64_t* order = scratch.order.as<int64_t>();
  int32_t* segments = scratch.segments.as<int32_t>();
  int64_t count = 0;
  for (int64_t t = 0; t < tokens.shape[0]; ++t) {
    const int64_t row = ids[t] - first;
    if (row >= 0 && row < grad.data.rows) order[count++] = row << 32 | t;
  }
  std::sort(order, order + count);  // by row, then by place: stable, and in place
  const int64_t runs = find_runs(order, count, segments);
  const codec::Rounding rounding = grad.rounding(ctx.random, RngStream::EmbeddingGradient);
  by_type(dx.dtype, [&]<class T>() {
    const T* rows = dx.as<T>();
#pragma omp parallel
    {
      float* sum = thread_row(scratch.rows, omp_get_thread_num());
      float* main = sum + cols;
#pragma omp for schedule(dynamic, 4)
      for (int64_t run = 0; run < runs; ++run) {
        std::fill_n(sum, cols, 0.0f);
        for (int64_t i = segments[run]; i < segments[run + 1]; ++i) {
          const T* row = rows + (order[i] & 0xffffffff) * cols;
          for (int64_t c = 0; c < cols; ++c) sum[c] += to_float(row[c]);
        }
        const int64_t row_of_token = order[segments[run]] >> 32;
        codec::decode_row(grad.data, row_of_token, main);
        for (int64_t c = 0; c < cols; ++c) main[c] += sum[c];
        codec::encode_row(grad.data, row_of_token, main, rounding);
      }
    }
  });
}

}  // namespace agoq::ops::cpu
