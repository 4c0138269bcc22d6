#include <cfloat>

#include "codec/block_cuda.cuh"
#include "ops/by_type.h"
#include "ops/head/cross_entropy_cuda.h"
#include "ops/head/row_sums.h"

namespace agoq::ops::cuda {
namespace {

using codec::cuda::FloatVec8;
using codec::cuda::kGroup;

constexpr int kThreads = 1024;  // with two groups of eight each, 64 KiB in flight on a multiprocessor
constexpr int kFlight = 2;
constexpr int kLanes = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

struct LogitRows {
  const float* logits;
  const int32_t* tokens;
  const float* weights;
  float* nll;
  int vocabulary;
  float scale;
  int first;  // the token of column 0
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

// Lanes add in different orders, and so may differ in the last bit.
__device__ ExpSum of_first_lane(ExpSum total) {
  return {__shfl_sync(kWholeWarp, total.most, 0), __shfl_sync(kWholeWarp, total.sum, 0)};
}

// Of all threads, for all threads.
template <int kWarps>
__device__ ExpSum block_total(ExpSum part) {
  static_assert(kWarps <= kLanes, "a warp adds the parts of all warps");
  __shared__ ExpSum of_warp[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  part = warp_total(part);
  if (lane == 0) of_warp[threadIdx.x / kLanes] = part;
  __syncthreads();
  return of_first_lane(warp_total(lane < kWarps ? of_warp[lane] : ExpSum{}));
}

// Group g of a row; behind its end numbers whose exp is zero. kAligned: rows are whole groups on 16-byte borders.
template <bool kAligned>
__device__ void load_group(const float* row, int g, int vocabulary, FloatVec8& x) {
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
    FloatVec8 x[kFlight];
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
  return block_total<kThreads / kLanes>(total);
}

template <class T>
__device__ void clear(T* row, int vocabulary) {
  const FloatVec8 zeros = {};
  for (int begin = static_cast<int>(threadIdx.x) * kGroup; begin < vocabulary; begin += kThreads * kGroup)
    codec::cuda::store8(row + begin, min(vocabulary - begin, kGroup), zeros);
}

// From the end to the beginning: the end has just been read and may still be in the L2 cache.
template <class T, bool kAligned>
__device__ void write_gradient(const float* row, int vocabulary, ExpSum total, int target, float factor, T* to) {
  const int groups = (vocabulary + kGroup - 1) / kGroup;
  const float share = factor / total.sum;
  for (int last = groups - 1 - static_cast<int>(threadIdx.x); last >= 0; last -= kFlight * kThreads) {
    FloatVec8 x[kFlight];
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
__global__ void __launch_bounds__(kThreads, 1) cross_entropy_rows(LogitRows p, T* dlogits) {
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

// --- rows that a few CTAs hold in their registers, to read them once ------------------------------------------------

constexpr int kHeldThreads = 512, kHeldCtas = 2;  // of a multiprocessor

// The CTAs that have a row together: a cluster, where there are several.
template <int kCtas>
class RowCtas {
 public:
  // Called first: this CTA runs, and the others may write to its memory.
  __device__ void announce() const {
    if constexpr (kCtas > 1) cluster_arrive();
  }
  // Of all threads of all CTAs, for all of them, in the order of the CTAs.
  __device__ ExpSum total(ExpSum part, int cta) const {
    part = block_total<kHeldThreads / kLanes>(part);
    if constexpr (kCtas > 1) {
      __shared__ ExpSum of_cta[kCtas];
      cluster_wait();
      if (threadIdx.x < kCtas) store_to(of_cta + cta, threadIdx.x, part);
      cluster_arrive();
      cluster_wait();
      part = of_cta[0];
#pragma unroll
      for (int i = 1; i < kCtas; ++i) part.add(of_cta[i]);
    }
    return part;
  }

 private:
  // Code for GPUs before 9.0 is never started with several CTAs to a row (kClusters).
  __device__ static void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
  }
  __device__ static void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }
  // To the same place in the memory of a CTA of the cluster.
  __device__ static void store_to(ExpSum* place, unsigned cta, ExpSum part) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    *static_cast<ExpSum*>(__cluster_map_shared_rank(place, cta)) = part;
#endif
  }
};

// A cluster of kCtas for each row, of which a thread has kHeld groups. Every exp is taken once, relative to the largest
// number of its thread.
template <class T, int kCtas, int kHeld>
__global__ void __launch_bounds__(kHeldThreads, kHeldCtas) cross_entropy_held_rows(LogitRows p, T* dlogits) {
  const RowCtas<kCtas> ctas;
  ctas.announce();
  const int64_t t = blockIdx.x / kCtas, at = t * p.vocabulary;
  const int cta = static_cast<int>(blockIdx.x) % kCtas;
  const auto begin = [&](int g) { return ((g * kCtas + cta) * kHeldThreads + static_cast<int>(threadIdx.x)) * kGroup; };
  const float* row = p.logits + at;
  const float weight = p.weights[t];
  FloatVec8 x[kHeld];
  ExpSum own;
  if (weight != 0) {
#pragma unroll
    for (int g = 0; g < kHeld; ++g) load_group<true>(row, begin(g) / kGroup, p.vocabulary, x[g]);
#pragma unroll
    for (int g = 0; g < kHeld; ++g)
#pragma unroll
      for (int i = 0; i < kGroup; ++i) own.most = fmaxf(own.most, x[g][i]);
#pragma unroll
    for (int g = 0; g < kHeld; ++g)
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        x[g][i] = __expf(x[g][i] - own.most);
        own.sum += x[g][i];
      }
  }
  const int target = p.tokens[t];
  const ExpSum total = ctas.total(own, cta);
  if (cta == 0 && threadIdx.x == 0) p.nll[t] = weight == 0 ? 0 : total.most - row[target] + logf(total.sum);
  const float factor = p.scale * weight, share = factor / total.sum * __expf(own.most - total.most);
#pragma unroll
  for (int g = 0; g < kHeld; ++g) {
    if (begin(g) >= p.vocabulary) continue;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      x[g][i] = weight == 0 ? 0.0f : x[g][i] * share;
      if (weight != 0 && begin(g) + i == target) x[g][i] -= factor;
    }
    codec::cuda::store8(dlogits + at + begin(g), kGroup, x[g]);
  }
}

// A divided vocabulary: a block for each of the rank's rows.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads, 1) sum_rows(LogitRows p, RowSums* sums) {
  const int64_t t = blockIdx.x;
  if (p.weights[t] == 0) {
    if (threadIdx.x == 0) sums[t] = {};
    return;
  }
  const float* row = p.logits + t * p.vocabulary;
  const ExpSum part = exp_sum<kAligned>(row, p.vocabulary);
  if (threadIdx.x > 0) return;
  const int target = p.tokens[t] - p.first;
  sums[t] = {part.most, part.sum, target >= 0 && target < p.vocabulary ? row[target] : 0.0f};
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads, 1) gradient_rows(LogitRows p, const RowSums* whole_rows, T* dlogits) {
  const int64_t t = blockIdx.x, at = t * p.vocabulary;
  const float weight = p.weights[t];
  if (weight == 0) return clear(dlogits + at, p.vocabulary);
  const RowSums whole = whole_rows[t];
  write_gradient<T, kAligned>(p.logits + at, p.vocabulary, {whole.most, whole.total}, p.tokens[t] - p.first,
                              p.scale * weight, dlogits + at);
}

struct Sums {
  RowSums* of_rank;  // [ranks, rows]
  const float* weights;
  float* nll;
  int64_t ranks, rows;
};

// A thread for each row, in rank order; the sum takes the first rank's place.
__global__ void add_sums(Sums p) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (t >= p.rows) return;
  ExpSum whole;
  float target = 0;
  for (int64_t rank = 0; rank < p.ranks; ++rank) {
    const RowSums part = p.of_rank[rank * p.rows + t];
    whole.add({part.most, part.total});
    target += part.target;
  }
  p.of_rank[t] = {whole.most, whole.sum, target};
  p.nll[t] = p.weights[t] == 0 ? 0 : whole.most - target + logf(whole.sum);
}

constexpr int kSumThreads = 128;

LogitRows rows_of(const Tensor& logits, const Targets& targets, float scale, float* nll) {
  return {logits.as<float>(),
          targets.tokens.as<int32_t>(),
          targets.weights.as<float>(),
          nll,
          static_cast<int>(logits.cols()),
          scale,
          static_cast<int>(targets.first)};
}

bool aligned(const LogitRows& p) {
  return p.vocabulary % kGroup == 0 && reinterpret_cast<uintptr_t>(p.logits) % sizeof(float4) == 0;
}

dim3 blocks(const Tensor& logits) {
  return dim3(static_cast<unsigned>(logits.shape[0]));
}

// Whether CTAs hold a row, and then what has been started.
template <class T, int kCtas, int kHeld>
bool ran_held(const Context& ctx, const LogitRows& rows, unsigned count, T* dlogits) {
  if (rows.vocabulary > kCtas * kHeldThreads * kHeld * kGroup) return false;
  agoq::cuda::launch(ctx, {dim3(count * kCtas), dim3(kHeldThreads), 0, kCtas}, cross_entropy_held_rows<T, kCtas, kHeld>,
                     rows, dlogits);
  return true;
}
template <class T>
bool ran_held(const Context& ctx, const LogitRows& rows, unsigned count, T* dlogits) {
  if (!aligned(rows)) return false;
  if (ran_held<T, 1, 4>(ctx, rows, count, dlogits)) return true;
  if constexpr (agoq::cuda::kClusters)
    return ran_held<T, 2, 4>(ctx, rows, count, dlogits) || ran_held<T, 4, 4>(ctx, rows, count, dlogits) ||
           ran_held<T, 8, 4>(ctx, rows, count, dlogits) || ran_held<T, 8, 5>(ctx, rows, count, dlogits);
  return false;
}

template <class T>
void run(const Context& ctx, const Tensor& logits, const LogitRows& rows, T* dlogits) {
  if (dlogits && ran_held(ctx, rows, blocks(logits).x, dlogits)) return;
  const auto kernel = aligned(rows) ? cross_entropy_rows<T, true> : cross_entropy_rows<T, false>;
  agoq::cuda::launch(ctx, kernel, blocks(logits), dim3(kThreads), rows, dlogits);
}

}  // namespace

void cross_entropy(const Context& ctx, const Tensor& logits, const Targets& targets, const Tensor& nll) {
  run<float>(ctx, logits, rows_of(logits, targets, 0, nll.as<float>()), nullptr);
}

void cross_entropy_backward(const Context& ctx, const Tensor& logits, const Targets& targets, float scale,
                            const Tensor& nll, const Tensor& dlogits) {
  const LogitRows rows = rows_of(logits, targets, scale, nll.as<float>());
  by_type(dlogits.dtype, [&]<class T> { run(ctx, logits, rows, dlogits.as<T>()); });
}

void sum_exponentials(const Context& ctx, const Tensor& logits, const Targets& targets, const Tensor& sums) {
  const LogitRows rows = rows_of(logits, targets, 0, nullptr);
  const auto kernel = aligned(rows) ? sum_rows<true> : sum_rows<false>;
  agoq::cuda::launch(ctx, kernel, blocks(logits), dim3(kThreads), rows, reinterpret_cast<RowSums*>(sums.as<float>()));
}

void cross_entropy_of_sums(const Context& ctx, const Tensor& sums, const Targets& targets, const Tensor& nll) {
  const Sums all{reinterpret_cast<RowSums*>(sums.as<float>()), targets.weights.as<float>(), nll.as<float>(),
                 sums.shape[0], sums.shape[1]};
  const auto grid = static_cast<unsigned>((all.rows + kSumThreads - 1) / kSumThreads);
  agoq::cuda::launch(ctx, add_sums, dim3(grid), dim3(kSumThreads), all);
}

void cross_entropy_gradient(const Context& ctx, const Tensor& sums, const Tensor& logits, const Targets& targets,
                            float scale, const Tensor& dlogits) {
  const LogitRows rows = rows_of(logits, targets, scale, nullptr);
  const auto* const whole_rows = reinterpret_cast<const RowSums*>(sums.as<float>());
  by_type(dlogits.dtype, [&]<class T> {
    const auto kernel = aligned(rows) ? gradient_rows<T, true> : gradient_rows<T, false>;
    agoq::cuda::launch(ctx, kernel, blocks(logits), dim3(kThreads), rows, whole_rows, dlogits.as<T>());
  });
}

}  // namespace agoq::ops::cuda
