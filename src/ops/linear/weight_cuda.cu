#include <algorithm>

#include "codec/block_cuda.cuh"
#include "ops/by_type.h"
#include "ops/linear/weight_cuda.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

constexpr int kThreads = 128;
constexpr int kGroups = 4;                            // of a thread
constexpr int kPerCta = kThreads * kGroups * kGroup;  // numbers of a row

// Where the numbers are read: exact fp32 ones, or bf16 ones with a correction or, for bf16 compute, without.
struct WeightSource {
  const float* exact = nullptr;
  const Bf16* value = nullptr;
  const int16_t* correction = nullptr;
};

WeightSource source_of(const Weight& w, DType compute) {
  if (w.value.dtype == DType::F32) return {.exact = w.value.as<float>()};
  if (compute == DType::BF16) return {.value = w.value.as<Bf16>()};
  if (w.master) return {.exact = w.master.as<float>()};
  return {.value = w.value.as<Bf16>(), .correction = w.correction ? w.correction.as<int16_t>() : nullptr};
}

__device__ inline void read8(const WeightSource& from, int64_t first, int n, FloatVec8& x) {
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

template <class T>
struct RowCopy {
  WeightSource from;
  RowIds which;
  int64_t cols;
  T* out;
};

// A CTA makes kPerCta numbers of one row. What is bf16 and stays bf16 is copied, all groups at once.
template <class T>
__global__ void __launch_bounds__(kThreads) copy_rows(const __grid_constant__ PdlArgs<RowCopy<T>> given) {
  const auto& [from, which, cols, out] = given.wait();
  const int64_t row = blockIdx.x, id = which.ids ? which.ids[row] - which.first : row;
  const bool there = id >= 0 && id < which.rows;
  const auto col = [&](int g) { return int64_t{blockIdx.y} * kPerCta + (g * kThreads + threadIdx.x) * kGroup; };
  const auto n = [&](int g) { return static_cast<int>(min(max(cols - col(g), int64_t{0}), int64_t{kGroup})); };
  T* const to = out + row * cols;
  if constexpr (sizeof(T) == 2) {
    if (from.value && !from.correction) {
      Fetched8<Bf16> groups[kGroups];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) groups[g] = fetch8(from.value + id * cols + col(g), there ? n(g) : 0);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        FloatVec8 x;
        unpack8(groups[g], x);
        store8(to + col(g), n(g), x);
      }
      return;
    }
  }
#pragma unroll 1
  for (int g = 0; g < kGroups; ++g) {
    FloatVec8 x = {};
    if (there) read8(from, id * cols + col(g), n(g), x);
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (float& number : x) number = high_half(number);
    }
    store8(to + col(g), n(g), x);
  }
}

// What a weight is held in; the parts that it has not are null.
struct WeightTarget {
  float* exact = nullptr;
  Bf16* value = nullptr;
  int16_t* correction = nullptr;

  explicit WeightTarget(const Weight& w) {
    if (w.value.dtype == DType::F32) exact = w.value.as<float>();
    if (w.value.dtype == DType::BF16) value = w.value.as<Bf16>();
    if (w.correction) correction = w.correction.as<int16_t>();
    if (w.master) exact = w.master.as<float>();
  }
  __device__ void store(int64_t at, float x) const {
    Bf16 high;
    int16_t low;
    split_fp32(x, high, low);
    if (exact) exact[at] = x;
    if (value) value[at] = high;
    if (correction) correction[at] = low;
  }
};

struct NormalFill {
  WeightTarget to;
  NormalRows numbers;
  int64_t cols;
};

// A CTA makes a row.
__global__ void __launch_bounds__(kThreads) fill_rows(const __grid_constant__ PdlArgs<NormalFill> given) {
  const auto& [to, numbers, cols] = given.wait();
  const int64_t row = blockIdx.x, end = numbers.first_col + cols;
  for (int64_t group = numbers.first_col / 4 + threadIdx.x; group * 4 < end; group += kThreads) {
    const auto four = numbers.four(numbers.first_row + row, group);
    for (int j = 0; j < 4; ++j) {
      const int64_t col = group * 4 + j - numbers.first_col;
      if (col >= 0 && col < cols) to.store(row * cols + col, four[static_cast<size_t>(j)]);
    }
  }
}

}  // namespace

void fill_normal(const Context& ctx, const Weight& w, const NormalRows& rows) {
  agoq::cuda::launch(ctx, fill_rows, static_cast<unsigned>(w.value.rows()), kThreads,
                     NormalFill{WeightTarget(w), rows, w.value.cols()});
}

void read_rows(const Context& ctx, const Weight& w, const Tensor& ids, const Tensor& out, int64_t first) {
  const RowIds which{ids ? ids.as<int32_t>() : nullptr, first, w.value.rows()};
  const dim3 grid(static_cast<unsigned>(out.rows()), static_cast<unsigned>((out.cols() + kPerCta - 1) / kPerCta));
  by_type(out.dtype, [&]<class T>() {
    agoq::cuda::launch(ctx, copy_rows<T>, grid, kThreads,
                       RowCopy<T>{source_of(w, out.dtype), which, out.cols(), out.as<T>()});
  });
}

}  // namespace agoq::ops::cuda
