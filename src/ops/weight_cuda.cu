#include <algorithm>

#include "codec/block_cuda.cuh"
#include "ops/by_type.h"
#include "ops/weight_cuda.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

constexpr int kThreads = 256;
constexpr int kPerCta = kThreads * kGroup;  // numbers of a row

// Where the numbers are read: exact fp32 ones, or bf16 ones with a correction or, for bf16 compute, without.
struct Source {
  const float* exact = nullptr;
  const Bf16* value = nullptr;
  const int16_t* correction = nullptr;
};

Source source_of(const Weight& w, DType compute) {
  if (w.value.dtype == DType::F32) return {.exact = w.value.as<float>()};
  if (compute == DType::BF16) return {.value = w.value.as<Bf16>()};
  if (w.master) return {.exact = w.master.as<float>()};
  return {.value = w.value.as<Bf16>(), .correction = w.correction ? w.correction.as<int16_t>() : nullptr};
}

__device__ inline void read8(const Source& from, int64_t first, int n, Numbers& x) {
  if (from.exact) return load8(from.exact + first, n, x);
  load8(from.value + first, n, x);
  if (!from.correction) return;
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (i < n) x[i] = join_fp32(Bf16{static_cast<uint16_t>(__float_as_uint(x[i]) >> 16)}, from.correction[first + i]);
}

// As the split rounds: ties up. What is bf16 already stays as it is.
__device__ inline float high_half(float x) {
  Bf16 high;
  int16_t low;
  split_fp32(x, high, low);
  return to_float(high);
}

// Which rows are read: ids[r] - first, or r.
struct RowIds {
  const int32_t* ids = nullptr;
  int64_t first = 0, rows = 0;  // of the weight: ids may name others
};

// A CTA makes kPerCta numbers of one row.
template <class T>
__global__ void __launch_bounds__(kThreads) copy_rows(Source from, RowIds which, int64_t cols, T* out) {
  const int64_t row = blockIdx.x, id = which.ids ? which.ids[row] - which.first : row;
  const int64_t col = int64_t{blockIdx.y} * kPerCta + threadIdx.x * kGroup;
  if (col >= cols) return;
  const int n = static_cast<int>(min(cols - col, int64_t{kGroup}));
  Numbers x = {};
  if (id >= 0 && id < which.rows) read8(from, id * cols + col, n, x);
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) x[i] = high_half(x[i]);
  }
  store8(out + row * cols + col, n, x);
}

}  // namespace

void read_rows(const Context& ctx, const Weight& w, const Tensor& ids, const Tensor& out, int64_t first) {
  const RowIds which{ids ? ids.as<int32_t>() : nullptr, first, w.value.rows()};
  const dim3 grid(static_cast<unsigned>(out.rows()), static_cast<unsigned>((out.cols() + kPerCta - 1) / kPerCta));
  by_type(out.dtype, [&]<class T>() {
    agoq::cuda::launch(ctx, copy_rows<T>, grid, kThreads, source_of(w, out.dtype), which, out.cols(), out.as<T>());
  });
}

}  // namespace agoq::ops::cuda
