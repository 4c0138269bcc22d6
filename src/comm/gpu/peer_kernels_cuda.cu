#include <algorithm>

#include "comm/gpu/peer_kernels_cuda.h"
#include "device/cuda.h"

namespace agoq::comm::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kMostBlocks = 32;    // as many as NCCL takes: links are full, and most multiprocessors stay with others
constexpr uint32_t kTurns = 1024;  // of waiting between two looks at the host's memory
constexpr int kAtOnce = 4;         // words of a thread on their way: a link's bandwidth times its latency is a megabyte

__global__ void barrier_kernel(const __grid_constant__ BarrierArgs b) {
  const int peer = static_cast<int>(threadIdx.x);
  if (peer >= b.peers) return;
  __threadfence_system();
  asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(b.told[peer]), "r"(b.count) : "memory");
  uint32_t arrived = 0;
  for (uint32_t turn = 1;; ++turn) {
    asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(arrived) : "l"(b.arrived[peer]) : "memory");
    if (static_cast<int32_t>(arrived - b.count) >= 0) break;  // counts may run over: what matters is which is ahead
    if (turn % kTurns == 0 && *b.stop != 0) break;
  }
  __threadfence_system();
}

// Where a thread begins, and how far on its next word is.
struct Stride {
  int64_t first, step;
};
__device__ Stride stride_of(int block, int blocks) {
  return {int64_t{block} * kThreads + threadIdx.x, int64_t{blocks} * kThreads};
}

__device__ bool by_words(const BytePair& s) {
  return ((reinterpret_cast<uintptr_t>(s.own) | reinterpret_cast<uintptr_t>(s.peers) |
           static_cast<uintptr_t>(s.bytes)) &
          (sizeof(uint4) - 1)) == 0;
}

template <class Word>
__device__ void swap_words(const BytePair& s, const Stride& stride) {
  Word* const own = reinterpret_cast<Word*>(s.own);
  Word* const peers = reinterpret_cast<Word*>(s.peers);
  const int64_t n = s.bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t begin = stride.first; begin < n; begin += kAtOnce * stride.step) {
    Word here[kAtOnce], there[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t i = begin + k * stride.step;
      if (i < n) there[k] = peers[i], here[k] = own[i];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t i = begin + k * stride.step;
      if (i < n) peers[i] = here[k], own[i] = there[k];
    }
  }
}

// Blocks deal with one peer each, in turn, so that all links are in use.
__global__ void __launch_bounds__(kThreads) all_to_all_kernel(const __grid_constant__ AllToAllArgs s) {
  const int peer = static_cast<int>(blockIdx.x) % s.peers;
  const Stride stride = stride_of(static_cast<int>(blockIdx.x) / s.peers, static_cast<int>(gridDim.x) / s.peers);
  for (int t = 0; t < s.tensors; ++t) {
    const BytePair& stretch = s.stretches[peer][t];
    by_words(stretch) ? swap_words<uint4>(stretch, stride) : swap_words<uint8_t>(stretch, stride);
  }
}

template <class Word>
__device__ void spread_words(const AllGatherArgs& s, int t, const Stride& stride) {
  const Word* const own = reinterpret_cast<const Word*>(s.own[t]);
  const int64_t n = s.bytes[t] / static_cast<int64_t>(sizeof(Word));
  for (int64_t begin = stride.first; begin < n; begin += kAtOnce * stride.step) {
    Word words[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (begin + k * stride.step < n) words[k] = own[begin + k * stride.step];
    for (int turn = 0; turn < s.peers; ++turn) {
      Word* const to = reinterpret_cast<Word*>(s.to[t][(turn + static_cast<int>(blockIdx.x)) % s.peers]);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (begin + k * stride.step < n) to[begin + k * stride.step] = words[k];
    }
  }
}

__global__ void __launch_bounds__(kThreads) all_gather_kernel(const __grid_constant__ AllGatherArgs s) {
  const Stride stride = stride_of(static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
  for (int t = 0; t < s.tensors; ++t) {
    uintptr_t bits = reinterpret_cast<uintptr_t>(s.own[t]) | static_cast<uintptr_t>(s.bytes[t]);
    for (int peer = 0; peer < s.peers; ++peer) bits |= reinterpret_cast<uintptr_t>(s.to[t][peer]);
    bits % sizeof(uint4) == 0 ? spread_words<uint4>(s, t, stride) : spread_words<uint8_t>(s, t, stride);
  }
}

template <class Parameters>
void launch_on(CUstream_st* stream, void (*kernel)(Parameters), int blocks, int threads, const Parameters& parameters) {
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(parameters);
  AGOQ_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void load_peer_kernels() {
  cudaFuncAttributes attributes{};
  AGOQ_CUDA_CHECK(cudaFuncGetAttributes(&attributes, barrier_kernel));
  AGOQ_CUDA_CHECK(cudaFuncGetAttributes(&attributes, all_to_all_kernel));
  AGOQ_CUDA_CHECK(cudaFuncGetAttributes(&attributes, all_gather_kernel));
}

void launch(CUstream_st* stream, const BarrierArgs& barrier) {
  launch_on(stream, barrier_kernel, 1, kMostPeers, barrier);
}

void launch(CUstream_st* stream, const AllToAllArgs& swap) {
  launch_on(stream, all_to_all_kernel, std::max(kMostBlocks / swap.peers, 1) * swap.peers, kThreads, swap);
}

void launch(CUstream_st* stream, const AllGatherArgs& spread) {
  launch_on(stream, all_gather_kernel, kMostBlocks, kThreads, spread);
}

}  // namespace agoq::comm::cuda
