#include "ops/gradient/gradient_norm_cuda.h"

#include <map>
#include <vector>

#include "codec/tile_schedulers.cuh"
#include "ops/gradient/gradient_sum_cuda.cuh"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;
using codec::Int8;

constexpr int kThreads = TensorListScheduler::kThreads, kBlocksAtOnce = kThreads / kLanes;
constexpr int kInFlight = 8;  // tiles of a thread whose loads it starts before it needs the first
constexpr int kTile = static_cast<int>(kNormTile);
static_assert(kTile % (kBlocksAtOnce * kInFlight) == 0);

struct NormedGradient {
  Pieces pieces;
  ListLayout blocks;
  float* square = nullptr;  // where its squared norm goes
};
struct Norms {
  TensorList<NormedGradient> list;
  double* partial;  // of each tile
};

__device__ double sum_of_squares(const FloatVec8& g) {
  double sum = 0;
#pragma unroll
  for (const float number : g) sum = fma(double{number}, double{number}, sum);
  return sum;
}

// Σ g² of eight numbers. Squares of codes are exact or nearly so in fp32, and cannot overflow; scales come in double.
template <class F>
__device__ double sum_of_squares(const Fetched<F>& g) {
  if constexpr (!F::kScaled) {
    FloatVec8 x;
    decode<F>(g, x);
    return sum_of_squares(x);
  } else {
    const double scale = to_float(g.scale);
    float sum = 0;
    if constexpr (std::is_same_v<F, Int8>) {
      const int low = static_cast<int>(g.codes.low), high = static_cast<int>(g.codes.high);
      sum = static_cast<float>(__dp4a(high, high, __dp4a(low, low, 0)));
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const float code = F::decode(codec::code_of<8>(g.codes, i));
        sum = fmaf(code, code, sum);
      }
    }
    return scale * scale * static_cast<double>(sum);
  }
}

// The sum over the threads of a block, in thread 0.
__device__ double sum_over_threads(double x) {
  __shared__ double warps[kThreads / 32];
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(kWholeWarp, x, other);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (const double warp : warps) sum += warp;
  return sum;
}

// The same of the sum of all pieces, `g` being of the first.
template <class F, class P>
__device__ double sum_of_squares(const Fetched<F>& g, const Pieces& pieces, const P& tile) {
  FloatVec8 sum;
  decode<F>(g, sum);
  add_others<F>(pieces, tile, sum);
  return sum_of_squares(sum);
}

// Σ g² of what a thread has of blocks [begin, end); tile_of(block) is its part of one.
template <class F, bool kSum, class TileOf>
__device__ double sum_of_squares(const NormedGradient& g, int begin, int end, const TileOf& tile_of) {
  double sum = 0;
  for (int index = begin + static_cast<int>(threadIdx.x) / kLanes; index < end; index += kInFlight * kBlocksAtOnce) {
    Fetched<F> fetched[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) fetched[k] = fetch<F>(g.pieces.first, tile_of(index + k * kBlocksAtOnce));
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if constexpr (kSum)
        sum += sum_of_squares<F>(fetched[k], g.pieces, tile_of(index + k * kBlocksAtOnce));
      else
        sum += sum_of_squares<F>(fetched[k]);
    }
  }
  return sum;
}

// partial[tile] = Σ g² of the tile.
template <class F, bool kSum>
__global__ void __launch_bounds__(kThreads) norm_of_tiles(const __grid_constant__ PdlArgs<Norms> given) {
  const auto& [list, partial] = given.wait();
  const int tile = static_cast<int>(blockIdx.x);
  const int tensor = list.tensor_of(tile);
  const NormedGradient& g = list.entries[tensor];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int begin = (tile - list.first[tensor]) * kTile, end = min(begin + kTile, g.blocks.count);
  double sum = 0;
  if (g.blocks.whole_pairs() && end - begin == kTile)
    sum = sum_of_squares<F, kSum>(g, begin, end, [&](int block) { return ListLayout::place_whole(block, lane); });
  else
    sum = sum_of_squares<F, kSum>(g, begin, end, [&](int block) { return g.blocks.place(block, lane); });
  sum = sum_over_threads(sum);
  if (threadIdx.x == 0) partial[tile] = sum;
}

// squares[tensor] = Σ partial over its tiles; a block of threads per tensor.
__global__ void __launch_bounds__(kThreads) norm_of_tensors(const __grid_constant__ PdlArgs<Norms> given) {
  const auto& [list, partial] = given.wait();
  const int tensor = static_cast<int>(blockIdx.x);
  double sum = 0;
  for (int tile = list.first[tensor] + static_cast<int>(threadIdx.x); tile < list.first[tensor + 1]; tile += kThreads)
    sum += partial[tile];
  sum = sum_over_threads(sum);
  if (threadIdx.x == 0) *list.entries[tensor].square = static_cast<float>(sum);
}

}  // namespace

void squared_norms(const Context& ctx, std::span<const GradientSum> grads, double* partial, float* squares) {
  std::map<std::pair<codec::Codec, bool>, std::vector<TensorList<NormedGradient>>>
      lists;  // by what takes its own kernel
  for (size_t i = 0; i < grads.size(); ++i) {
    NormedGradient gradient{Pieces(grads[i]), ListLayout(grads[i].first), squares + i};
    gradient.blocks.aligned &= gradient.pieces.aligned();
    append(lists[{grads[i].first.codec, grads[i].pieces > 1}], gradient, norm_tiles(grads[i]));
  }
  for (const auto& [kernel, parts] : lists)
    dispatch_gradient(kernel.first, kernel.second, [&]<class F, bool kSum>() {
      for (const TensorList<NormedGradient>& list : parts) {
        const Norms norms{list, partial};
        agoq::cuda::launch(ctx, norm_of_tiles<F, kSum>, list.tiles(), kThreads, norms);
        agoq::cuda::launch(ctx, norm_of_tensors, list.count, kThreads, norms);
        partial += list.tiles();
      }
    });
}

}  // namespace agoq::ops::cuda
