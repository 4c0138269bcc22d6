#include <cfloat>

#include "codec/block_cuda.cuh"
#include "ops/cross_entropy_cuda.h"

namespace agoq::ops::cuda {
namespace {

using codec::cuda::kGroup;
using codec::cuda::Numbers;

constexpr int kThreads = 1024;  // with two groups of eight each, 64 KiB in flight on a multiprocessor
constexpr int kFlight = 2;
constexpr int kLanes = 32, kWarps = kThreads / kLanes;
constexpr unsigned kWholeWarp = 0xffffffffu;

struct Rows {
  const float* logits;
  const int32_t* tokens;
  const float* weights;
  float* nll;
  int vocabulary;
  float scale;
};

// A part of Σ exp(x), relative to its largest x.
struct ExpSum {
  float most = -FLT_MAX, sum = 0;

  // Brings it to a maximum of at least `other`.
  __device__ void raise(float other) {
    const float higher = fmaxf(most, other);
    sum *= __expf(most - higher);
    most = higher;
  }
  __device__ void add(ExpSum other) {
    raise(other.most);
    sum = fmaf(other.sum, __expf(other.most - most), sum);
  }
};

__device__ ExpSum warp_total(ExpSum part) {
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2)
    part.add({__shfl_xor_sync(kWholeWarp, part.most, other), __shfl_xor_sync(kWholeWarp, part.sum, other)});
  return part;
}

// Of all threads, for all threads.
__device__ ExpSum block_total(ExpSum part) {
  __shared__ ExpSum of_warp[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  part = warp_total(part);
  if (lane == 0) of_warp[threadIdx.x / kLanes] = part;
  __syncthreads();
  return warp_total(of_warp[lane]);
}
static_assert(kWarps == kLanes, "a warp adds the parts of all warps");

// Group g of a row; behind its end numbers whose exp is zero. kAligned: rows are whole groups on 16-byte borders.
template <bool kAligned>
__device__ void load_group(const float* row, int g, int vocabulary, Numbers& x) {
  const int begin = g * kGroup;
  if constexpr (kAligned) {
    if (begin < vocabulary) return codec::cuda::load8(row + begin, kGroup, x);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) x[i] = -INFINITY;
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) x[i] = begin + i < vocabulary ? row[begin + i] : -INFINITY;
  }
}

template <bool kAligned>
__device__ ExpSum exp_sum(const float* row, int vocabulary) {
  const int groups = (vocabulary + kGroup - 1) / kGroup;
  ExpSum total;
  for (int first = static_cast<int>(threadIdx.x); first < groups; first += kFlight * kThreads) {
    Numbers x[kFlight];
#pragma unroll
    for (int f = 0; f < kFlight; ++f) load_group<kAligned>(row, first + f * kThreads, vocabulary, x[f]);
    float most = -FLT_MAX;
#pragma unroll
    for (int f = 0; f < kFlight; ++f)
#pragma unroll
      for (int i = 0; i < kGroup; ++i) most = fmaxf(most, x[f][i]);
    total.raise(most);
#pragma unroll
    for (int f = 0; f < kFlight; ++f)
#pragma unroll
      for (int i = 0; i < kGroup; ++i) total.sum += __expf(x[f][i] - total.most);
  }
  return block_total(total);
}

template <class T>
__device__ void clear(T* row, int vocabulary) {
  const Numbers zeros = {};
  for (int begin = static_cast<int>(threadIdx.x) * kGroup; begin < vocabulary; begin += kThreads * kGroup)
    codec::cuda::store8(row + begin, min(vocabulary - begin, kGroup), zeros);
}

// From the end to the beginning: the end has just been read and may still be in the L2 cache.
template <class T, bool kAligned>
__device__ void write_gradient(const float* row, int vocabulary, ExpSum total, int target, float factor, T* to) {
  const int groups = (vocabulary + kGroup - 1) / kGroup;
  const float share = factor / total.sum;
  for (int last = groups - 1 - static_cast<int>(threadIdx.x); last >= 0; last -= kFlight * kThreads) {
    Numbers x[kFlight];
#pragma unroll
    for (int f = 0; f < kFlight; ++f)
      if (last >= f * kThreads) load_group<kAligned>(row, last - f * kThreads, vocabulary, x[f]);
#pragma unroll
    for (int f = 0; f < kFlight; ++f) {
      if (last < f * kThreads) continue;
      const int begin = (last - f * kThreads) * kGroup;
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        x[f][i] = __expf(x[f][i] - total.most) * share;
        if (begin + i == target) x[f][i] -= factor;
      }
      codec::cuda::store8(to + begin, min(vocabulary - begin, kGroup), x[f]);
    }
  }
}

// A block for each row. Without a gradient `dlogits` is null.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads, 1) cross_entropy_rows(Rows p, T* dlogits) {
  const int64_t t = blockIdx.x, at = t * p.vocabulary;
  const float weight = p.weights[t];
  if (weight == 0) {
    if (threadIdx.x == 0) p.nll[t] = 0;
    if (dlogits) clear(dlogits + at, p.vocabulary);
    return;
  }
  const float* row = p.logits + at;
  const int target = p.tokens[t];
  const ExpSum total = exp_sum<kAligned>(row, p.vocabulary);
  if (threadIdx.x == 0) p.nll[t] = total.most - row[target] + logf(total.sum);
  if (dlogits) write_gradient<T, kAligned>(row, p.vocabulary, total, target, p.scale * weight, dlogits + at);
}

template <class T>
void run(const Context& ctx, const Tensor& logits, const Targets& targets, float scale, const Tensor& nll, T* dlogits) {
  const Rows rows{logits.as<float>(), targets.tokens.as<int32_t>(),    targets.weights.as<float>(),
                  nll.as<float>(),    static_cast<int>(logits.cols()), scale};
  const auto address = reinterpret_cast<uintptr_t>(rows.logits);
  const bool aligned = rows.vocabulary % kGroup == 0 && address % sizeof(float4) == 0;
  const auto kernel = aligned ? cross_entropy_rows<T, true> : cross_entropy_rows<T, false>;
  agoq::cuda::launch(ctx, kernel, dim3(static_cast<unsigned>(logits.shape[0])), dim3(kThreads), rows, dlogits);
}

}  // namespace

void cross_entropy(const Context& ctx, const Tensor& logits, const Targets& targets, const Tensor& nll) {
  run<float>(ctx, logits, targets, 0, nll, nullptr);
}

void cross_entropy_backward(const Context& ctx, const Tensor& logits, const Targets& targets, float scale,
                            const Tensor& nll, const Tensor& dlogits) {
  if (dlogits.dtype == DType::F32)
    run(ctx, logits, targets, scale, nll, dlogits.as<float>());
  else
    run(ctx, logits, targets, scale, nll, dlogits.as<Bf16>());
}

}  // namespace agoq::ops::cuda
