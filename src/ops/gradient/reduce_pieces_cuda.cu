#include "codec/tile_schedulers.cuh"
#include "ops/gradient/gradient_sum_cuda.cuh"
#include "ops/gradient/reduce_pieces_cuda.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

// Pieces whose loads are on their way before the first is added.
template <class F>
constexpr int kAtOnce = F::kBits <= 8 ? 8 : 2;

struct PieceSum {
  QuantRows first, out;
  int pieces;
  int64_t piece_rows;
  bool add;  // to what is there
  RngOffsets draws;
  BlockScheduler tasks;
};

template <class F, class Out>
__global__ void __launch_bounds__(BlockScheduler::kThreads)
    sum_kernel(const __grid_constant__ PdlArgs<PieceSum> given) {
  const PieceSum& s = given.wait();
  const BlockScheduler::Task task = s.tasks.mine();
  const LaneTile p = s.first.row.place<F>(task.block, task.lane);
  FloatVec8 sum;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) sum[i] = -0.0f;  // -0 + x is x, also where that is a zero with a sign
  const auto piece = [&](int j) { return s.first.at(task.row + j * s.piece_rows); };
  add_pieces<F, kAtOnce<F>>(0, s.pieces, piece, p, sum);
  const auto to = s.out.row.place<Out>(task.block, task.lane);
  if (s.add) add_to<Out>(fetch<Out>(s.out.at(task.row), to), sum);
  encode<Out>(s.out.at(task.row), to, sum, s.draws, task.row);
}

}  // namespace

void sum_pieces(const Context& ctx, const GradientSum& sum, const codec::Quantized& out,
                const codec::Rounding& rounding, bool add) {
  const PieceSum s{QuantRows(sum.first),
                   QuantRows(out),
                   sum.pieces,
                   sum.piece_rows,
                   add,
                   RngOffsets(rounding, out.row),
                   BlockScheduler(out.rows, out.row.blocks())};
  codec::dispatch(sum.first.codec, [&]<class F>() {
    const auto kernel = out.codec == F::kCodec ? sum_kernel<F, F> : sum_kernel<F, codec::Fp32>;
    agoq::cuda::launch(ctx, kernel, s.tasks.grid(), BlockScheduler::kThreads, s);
  });
}

}  // namespace agoq::ops::cuda
