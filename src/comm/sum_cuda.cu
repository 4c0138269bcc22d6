#include "comm/sum_cuda.h"
#include "device/cuda.h"

namespace agoq::comm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kBytes = 16;  // of a part that a thread adds up: one access where they are aligned

// Row i of `others` begins at i · n. Rows [0, before) come before `own`, the rest behind it; `own` may be null.
template <class T>
struct Sum {
  const T* others;
  int64_t rows, before;
  const T* own;
  T* out;
  int64_t n;
  bool aligned;
};

template <class T>
struct alignas(kBytes) Vector {
  static constexpr int kNumbers = kBytes / sizeof(T);
  T numbers[kNumbers];
};

// What sums are made in, and back.
__device__ float widen(float x) {
  return x;
}
__device__ float widen(Bf16 x) {
  return to_float(x);
}
__device__ double widen(double x) {
  return x;
}
template <class T, class Wide>
__device__ T narrow(Wide x) {
  if constexpr (sizeof(T) == sizeof(Wide))
    return x;
  else
    return from_float<T>(x);
}

// Numbers [first, first + n) of all parts, n at most those of a vector; kWhole: as many, and aligned.
template <bool kWhole, class T>
__device__ void add_up(const Sum<T>& s, int64_t first, int n) {
  constexpr int kNumbers = Vector<T>::kNumbers;
  decltype(widen(T{})) totals[kNumbers] = {};
  const auto add = [&](const T* from) {
    Vector<T> x = {};
    if constexpr (kWhole) {
      x = __builtin_bit_cast(Vector<T>, *reinterpret_cast<const uint4*>(from));
    } else {
      for (int i = 0; i < kNumbers; ++i)
        if (i < n) x.numbers[i] = from[i];
    }
    for (int i = 0; i < kNumbers; ++i) totals[i] += widen(x.numbers[i]);
  };
  const auto add_rows = [&](int64_t begin, int64_t end) {
    const T* from = s.others + begin * s.n + first;
#pragma unroll 4
    for (int64_t row = begin; row < end; ++row, from += s.n) add(from);
  };
  add_rows(0, s.before);
  if (s.own) add(s.own + first);
  add_rows(s.before, s.rows);
  Vector<T> sum;
  for (int i = 0; i < kNumbers; ++i) sum.numbers[i] = narrow<T>(totals[i]);
  if constexpr (kWhole) {
    *reinterpret_cast<uint4*>(s.out + first) = __builtin_bit_cast(uint4, sum);
  } else {
    for (int i = 0; i < kNumbers; ++i)
      if (i < n) s.out[first + i] = sum.numbers[i];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ Sum<T> s) {
  constexpr int kNumbers = Vector<T>::kNumbers;
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kNumbers;
  const int64_t left = s.n - first;
  if (left >= kNumbers && s.aligned)
    add_up<true>(s, first, kNumbers);
  else if (left > 0)
    add_up<false>(s, first, static_cast<int>(min(left, int64_t{kNumbers})));
}

bool aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % kBytes == 0;
}
// All rows of n numbers, if there are several.
bool rows_aligned(const Tensor& rows, int64_t n) {
  if (!rows) return true;
  return aligned(rows) && (rows.shape[0] == 1 || static_cast<size_t>(n) * size_of(rows.dtype) % kBytes == 0);
}

template <class T>
const T* pointer(const Tensor& t) {
  return t ? t.as<T>() : nullptr;
}

template <class T>
void sum_of(const Context& ctx, const SumParts& parts, const Tensor& out) {
  const Sum<T> s{pointer<T>(parts.others),
                 parts.others ? parts.others.shape[0] : 0,
                 parts.before,
                 pointer<T>(parts.own),
                 out.as<T>(),
                 out.count(),
                 rows_aligned(parts.others, out.count()) && aligned(parts.own) && aligned(out)};
  constexpr int64_t kOfABlock = kThreads * Vector<T>::kNumbers;
  agoq::cuda::launch(ctx, sum_kernel<T>, dim3(static_cast<unsigned>((s.n + kOfABlock - 1) / kOfABlock)), kThreads, s);
}

}  // namespace

void sum(const Context& ctx, const SumParts& parts, const Tensor& out) {
  if (out.dtype == DType::F64) return sum_of<double>(ctx, parts, out);
  if (out.dtype == DType::F32) return sum_of<float>(ctx, parts, out);
  sum_of<Bf16>(ctx, parts, out);
}

}  // namespace agoq::comm::cuda
