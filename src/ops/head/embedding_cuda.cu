#include "ops/head/embedding_cuda.h"

#include <thrust/iterator/counting_iterator.h>
#include <algorithm>
#include <bit>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_select.cuh>

#include "codec/block_cuda.cuh"
#include "ops/by_type.h"
#include "ops/sequence_parallel.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

constexpr int kThreads = 256;
constexpr int kBlocksPerCta = kThreads / kLanes;
constexpr int64_t kMostCtas = 2048;  // along the runs; each takes every so many-th

__global__ void count_up(int32_t* places, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) places[i] = i;
}

// Runs cub's algorithm in `workspace`: call(memory, bytes) sets the bytes it needs if memory is null.
template <class Call>
void in_workspace(const Tensor& workspace, const char* what, Call&& call) {
  size_t needed = 0;
  AGOQ_CUDA_CHECK(call(nullptr, needed));
  require(needed <= workspace.bytes(), "{} asks for {} bytes of temporary storage, more than the planned {}", what,
          needed, workspace.bytes());
  AGOQ_CUDA_CHECK(call(workspace.data, needed));
}

struct IsHead {
  const int32_t* sorted;
  __device__ bool operator()(int i) const { return i == 0 || sorted[i] != sorted[i - 1]; }
};

// Stable: places with the same token stay in order.
void sort_by_token(const Context& ctx, const Tensor& tokens, int bits, const EmbeddingBackwardWorkspace& workspace) {
  const int count = static_cast<int>(tokens.count());
  agoq::cuda::launch(ctx, count_up, static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads,
                     workspace.places.as<int32_t>(), count);
  const auto* keys = reinterpret_cast<const uint32_t*>(tokens.as<int32_t>());  // never negative
  auto* sorted = reinterpret_cast<uint32_t*>(workspace.sorted.as<int32_t>());
  in_workspace(workspace.cub, "cub's radix sort", [&](void* memory, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(memory, bytes, keys, sorted, workspace.places.as<int32_t>(),
                                           workspace.order.as<int32_t>(), count, 0, bits, agoq::cuda::stream(ctx));
  });
  in_workspace(workspace.cub, "cub's selection", [&](void* memory, size_t& bytes) {
    return cub::DeviceSelect::If(memory, bytes, thrust::counting_iterator<int32_t>(0), workspace.heads.as<int32_t>(),
                                 workspace.runs.as<int32_t>(), count, IsHead{workspace.sorted.as<int32_t>()},
                                 agoq::cuda::stream(ctx));
  });
}

template <class T>
struct Runs {
  QuantRows grad;
  RngOffsets draws;
  const T* dx;  // [tokens, columns]
  const int32_t *sorted, *order, *heads, *runs;
  int tokens;
  int64_t first, rows;  // the token of the gradient's row 0, and how many rows it has
};

// sum += kRows rows of dx, one after another, but all of them in flight at once.
template <int kRows, class T>
__device__ inline void add_rows(const Runs<T>& r, int first, const LaneTile& p, FloatVec8& sum) {
  decltype(fetch8(r.dx, 0)) packed[kRows];
#pragma unroll
  for (int j = 0; j < kRows; ++j) packed[j] = fetch8(r.dx + int64_t{r.order[first + j]} * r.grad.row.cols + p.col, p.n);
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    FloatVec8 row;
    unpack8(packed[j], row);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) sum[i] += row[i];
  }
}

// A half-warp adds, for one block of columns and run after run of the same token, the run's rows to the token's.
template <class F, class T>
__global__ void __launch_bounds__(kThreads) add_runs(const __grid_constant__ PdlArgs<Runs<T>> given) {
  const Runs<T>& r = given.wait();
  const int block = static_cast<int>(blockIdx.y * kBlocksPerCta + threadIdx.x / kLanes);
  const LaneTile p = r.grad.row.template place<F>(block, static_cast<int>(threadIdx.x % kLanes));
  const int runs = *r.runs;
  for (int run = static_cast<int>(blockIdx.x); run < runs; run += static_cast<int>(gridDim.x)) {
    const int begin = r.heads[run], end = run + 1 < runs ? r.heads[run + 1] : r.tokens;
    const int64_t row = r.sorted[begin] - r.first;
    if (row < 0 || row >= r.rows) continue;  // another rank's
    const auto packed_main = fetch<F>(r.grad.at(row), p);
    FloatVec8 sum = {}, main;
    int i = begin;
    constexpr int kMany = sizeof(T) == 2 ? 16 : 8;
    for (; i + kMany <= end; i += kMany) add_rows<kMany>(r, i, p, sum);
    for (; i + 4 <= end; i += 4) add_rows<4>(r, i, p, sum);
    for (; i < end; ++i) add_rows<1>(r, i, p, sum);
    decode<F>(packed_main, main);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) main[j] += sum[j];
    encode<F>(r.grad.at(row), p, main, r.draws, row);
  }
}

}  // namespace

void embedding_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, const MainGrad& grad, int64_t first,
                        const EmbeddingBackwardWorkspace& workspace) {
  const codec::Quantized& q = grad.data;
  const int64_t count = tokens.count();
  if (count == 0) return;
  // Where the vocabulary is divided, other ranks' tokens are sorted, too.
  const uint64_t vocabulary = alone(ctx) ? static_cast<uint64_t>(q.rows) : uint64_t{1} << 31;
  sort_by_token(ctx, tokens, std::max(1, static_cast<int>(std::bit_width(vocabulary - 1))), workspace);
  const dim3 grid(static_cast<unsigned>(std::min(count, kMostCtas)),
                  static_cast<unsigned>((q.row.blocks() + kBlocksPerCta - 1) / kBlocksPerCta));
  const RngOffsets draws(grad.rounding(ctx.random, RngStream::EmbeddingGradient), q.row);
  codec::dispatch(q.codec, [&]<class F>() {
    by_type(dx.dtype, [&]<class T>() {
      agoq::cuda::launch(
          ctx, add_runs<F, T>, grid, kThreads,
          Runs<T>{QuantRows(q), draws, dx.as<T>(), workspace.sorted.as<int32_t>(), workspace.order.as<int32_t>(),
                  workspace.heads.as<int32_t>(), workspace.runs.as<int32_t>(), static_cast<int>(count), first, q.rows});
    });
  });
}

}  // namespace agoq::ops::cuda
