#include <algorithm>
#include <type_traits>

#include "codec/block_cuda.cuh"
#include "ops/by_type.h"
#include "ops/rope_cuda.h"

namespace agoq::ops::cuda {
namespace {

constexpr int kThreads = 256;  // at most
constexpr int kHeads = 4;      // whose loads a thread has in flight

// kWidth neighbouring numbers, in one access where there are eight: a plain load, since the row is rotated in place.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth <= 16 ? sizeof(T) * kWidth : 16) Chunk {
  T x[kWidth];
};

// To nearest even, in one instruction.
template <class T>
__device__ inline T rounded(float x) {
  if constexpr (std::is_same_v<T, Bf16>) {
    Bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
  return from_float<T>(x);
}

template <class T>
struct Rotation {
  T* qkv;
  const float* table;        // cos | sin of each position
  const int32_t* positions;  // of each row
  int64_t cols;
  int heads, dim;
  float sign;
};

// A CTA rotates one row. A thread has kWidth pairs (i, i + D/2) of every blockDim.y-th head, whose angles are the same.
// Operation by operation as on the CPU, so that the bits are the same.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) rotate_row(const __grid_constant__ Rotation<T> r) {
  using Numbers = Chunk<T, kWidth>;
  using Angles = Chunk<float, kWidth>;
  const int half = r.dim / 2, step = blockDim.y;
  T* row = r.qkv + static_cast<int64_t>(blockIdx.x) * r.cols;
  const float* angles = r.table + static_cast<int64_t>(r.positions[blockIdx.x]) * r.dim;
  for (int i = threadIdx.x * kWidth; i < half; i += blockDim.x * kWidth) {
    const Angles cosine = *reinterpret_cast<const Angles*>(angles + i);
    const Angles sine = *reinterpret_cast<const Angles*>(angles + half + i);
    for (int first = threadIdx.y; first < r.heads; first += kHeads * step) {
      const auto at = [&](int j) { return row + static_cast<int64_t>(first + j * step) * r.dim + i; };
      Numbers a[kHeads], b[kHeads];
#pragma unroll
      for (int j = 0; j < kHeads; ++j) {
        if (first + j * step >= r.heads) continue;
        a[j] = *reinterpret_cast<const Numbers*>(at(j));
        b[j] = *reinterpret_cast<const Numbers*>(at(j) + half);
      }
#pragma unroll
      for (int j = 0; j < kHeads; ++j) {
        if (first + j * step >= r.heads) continue;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          const float x = to_float(a[j].x[k]), y = to_float(b[j].x[k]), s = r.sign * sine.x[k];
          a[j].x[k] = rounded<T>(x * cosine.x[k] - y * s);
          b[j].x[k] = rounded<T>(y * cosine.x[k] + x * s);
        }
        *reinterpret_cast<Numbers*>(at(j)) = a[j];
        *reinterpret_cast<Numbers*>(at(j) + half) = b[j];
      }
    }
  }
}

// As many threads as share out the pairs of a head, times as many heads as leave each thread kHeads of them.
dim3 threads(int64_t chunks, int64_t heads) {
  const int64_t x = std::min<int64_t>(chunks, kThreads);
  const int64_t y = std::clamp<int64_t>((heads + kHeads - 1) / kHeads, 1, kThreads / x);
  return {static_cast<unsigned>(x), static_cast<unsigned>(y)};
}

}  // namespace

void rotate(const Context& ctx, const Tensor& qkv, int64_t heads, int64_t dim, const Tensor& table, float sign) {
  const dim3 rows(static_cast<unsigned>(qkv.rows()));
  by_type(qkv.dtype, [&]<class T>() {
    constexpr int kWidth = codec::cuda::kGroup;
    const Rotation<T> rotation{qkv.as<T>(), table.as<float>(),       ctx.positions.as<int32_t>(),
                               qkv.cols(),  static_cast<int>(heads), static_cast<int>(dim),
                               sign};
    if (dim % (2 * kWidth) == 0 && reinterpret_cast<uintptr_t>(qkv.data) % 16 == 0) {
      agoq::cuda::launch(ctx, rotate_row<T, kWidth>, rows, threads(dim / 2 / kWidth, heads), rotation);
    } else {
      agoq::cuda::launch(ctx, rotate_row<T, 1>, rows, threads(dim / 2, heads), rotation);
    }
  });
}

}  // namespace agoq::ops::cuda
