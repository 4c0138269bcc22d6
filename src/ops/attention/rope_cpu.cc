#include "ops/attention/rope_cpu.h"

#include "ops/cpu.h"

namespace agoq::ops::cpu {
namespace {

// (a, b) -> (a cos - b sin, b cos + a sin) for the two halves of one head.
template <class T>
void rotate_head(T* head, const float* cosine, const float* sine, int64_t half, float sign) {
  T* other = head + half;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = to_float(head[i]), b = to_float(other[i]), s = sign * sine[i];
    head[i] = from_float<T>(a * cosine[i] - b * s);
    other[i] = from_float<T>(b * cosine[i] + a * s);
  }
}

}  // namespace

void rotate(const Tensor& qkv, int64_t heads, int64_t dim, const Tensor& positions, const Tensor& table, float sign) {
  const int32_t* position = positions.as<int32_t>();
  const float* angles = table.as<float>();
  by_type(qkv.dtype, [&]<class T> {
    T* numbers = qkv.as<T>();
    const int64_t cols = qkv.cols();
    parallel_for(qkv.rows(), [&](int64_t t, int) {
      const float* cosine = angles + position[t] * dim;
      for (int64_t h = 0; h < heads; ++h)
        rotate_head(numbers + t * cols + h * dim, cosine, cosine + dim / 2, dim / 2, sign);
    });
  });
}

}  // namespace agoq::ops::cpu
