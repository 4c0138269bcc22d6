#include "codec/tile_schedulers.cuh"
#include "ops/gradient/reduce_pieces_cuda.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

// Pieces whose loads are on their way before the first is added.
template <class F>
constexpr int kAtOnce = F::kBits <= 8 ? 8 : 2;

struct PieceSum {
  QuantPtr first, out;
  int pieces;
  int64_t piece_rows;
  RngOffsets draws;
  BlockScheduler tasks;
};

template <class F>
__device__ void add(const Fetched<F>& partial_sum, FloatVec8& sum) {
  if constexpr (F::kScaled) {
    codec::add_group<F>(partial_sum.codes, to_float(partial_sum.scale), sum);
  } else {
    FloatVec8 numbers;
    decode<F>(partial_sum, numbers);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) sum[i] += numbers[i];
  }
}

template <class F, class Out>
__global__ void __launch_bounds__(BlockScheduler::kThreads)
    sum_kernel(const __grid_constant__ PdlArgs<PieceSum> given) {
  const PieceSum& s = given.wait();
  const BlockScheduler::Task task = s.tasks.mine();
  const LaneTile p = s.first.row.place<F>(task.block, task.lane);
  FloatVec8 sum;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) sum[i] = -0.0f;  // -0 + x is x, also where that is a zero with a sign
#pragma unroll 1
  for (int first = 0; first < s.pieces; first += kAtOnce<F>) {
    Fetched<F> fetched[kAtOnce<F>];
#pragma unroll
    for (int k = 0; k < kAtOnce<F>; ++k)
      if (first + k < s.pieces) fetched[k] = fetch<F>(s.first, task.row + (first + k) * s.piece_rows, p);
#pragma unroll
    for (int k = 0; k < kAtOnce<F>; ++k)
      if (first + k < s.pieces) add<F>(fetched[k], sum);
  }
  encode<Out>(s.out, task.row, s.out.row.place<Out>(task.block, task.lane), sum, s.draws);
}

}  // namespace

void sum_pieces(const Context& ctx, const GradientSum& sum, const codec::Quantized& out,
                const codec::Rounding& rounding) {
  const PieceSum s{QuantPtr(sum.first),
                   QuantPtr(out),
                   sum.pieces,
                   sum.piece_rows,
                   RngOffsets(rounding, out.row),
                   BlockScheduler(out.rows, out.row.blocks())};
  codec::dispatch(sum.first.codec, [&]<class F>() {
    const auto kernel = out.codec == F::kCodec ? sum_kernel<F, F> : sum_kernel<F, codec::Fp32>;
    agoq::cuda::launch(ctx, kernel, s.tasks.grid(), BlockScheduler::kThreads, s);
  });
}

}  // namespace agoq::ops::cuda
