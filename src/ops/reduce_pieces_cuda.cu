#include "codec/block_tasks.cuh"
#include "ops/reduce_pieces_cuda.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

constexpr int kAtOnce = 4;  // pieces whose loads are on their way before the first is added

struct Sum {
  View first, out;
  int pieces;
  int64_t piece_rows;
  Draws draws;
  BlockTasks tasks;
};

template <class F, class Out>
__global__ void __launch_bounds__(BlockTasks::kThreads) sum_kernel(const __grid_constant__ Given<Sum> given) {
  const Sum& s = given.wait();
  const BlockTasks::Task task = s.tasks.mine();
  const Place p = s.first.row.place<F>(task.block, task.lane);
  const auto row_of = [&](int j) { return task.row + j * s.piece_rows; };
  Numbers sum;
  decode<F>(s.first, row_of(0), p, sum);
#pragma unroll 1
  for (int first = 1; first < s.pieces; first += kAtOnce) {
    Fetched<F> fetched[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k < s.pieces) fetched[k] = fetch<F>(s.first, row_of(first + k), p);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k >= s.pieces) break;
      Numbers addend;
      decode<F>(fetched[k], addend);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) sum[i] += addend[i];
    }
  }
  encode<Out>(s.out, task.row, s.out.row.place<Out>(task.block, task.lane), sum, s.draws);
}

}  // namespace

void sum_pieces(const Context& ctx, const GradientSum& sum, const codec::Quantized& out,
                const codec::Rounding& rounding) {
  const Sum s{View(sum.first),
              View(out),
              sum.pieces,
              sum.piece_rows,
              Draws(rounding, out.row),
              BlockTasks(out.rows, out.row.blocks())};
  codec::dispatch(sum.first.codec, [&]<class F>() {
    const auto kernel = out.codec == F::kCodec ? sum_kernel<F, F> : sum_kernel<F, codec::Fp32>;
    agoq::cuda::launch(ctx, kernel, s.tasks.grid(), BlockTasks::kThreads, s);
  });
}

}  // namespace agoq::ops::cuda
