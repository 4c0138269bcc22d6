#include "ops/gradient/reduce_pieces.h"

#include "ops/cpu.h"
#include "ops/gradient/reduce_pieces_cpu.h"
#include "ops/gradient/reduce_pieces_cuda.h"

namespace agoq::ops {

namespace {

void reduce(const Context& ctx, const GradientSum& sum, const codec::Quantized& out, const codec::Rounding& rounding,
            bool add) {
  check_sum(sum, "sum_pieces");
  const codec::Quantized& first = sum.first;
  require(
      (out.codec == first.codec || out.codec == codec::Codec::Fp32) && out.rows == first.rows && out.row == first.row,
      "sum_pieces: the sum of {} [{}, {}] in segments of {} cannot be kept as {} [{}, {}] in segments of {}",
      codec::name_of(first.codec), first.rows, first.row.cols, first.row.segment, codec::name_of(out.codec), out.rows,
      out.row.cols, out.row.segment);
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Codec);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::sum_pieces(ctx, sum, out, rounding, add);
  cpu::require_cpu(ctx, "sum_pieces");
  cpu::sum_pieces(sum, out, rounding, add);
}

}  // namespace

void sum_pieces(const Context& ctx, const GradientSum& sum, const codec::Quantized& out,
                const codec::Rounding& rounding) {
  reduce(ctx, sum, out, rounding, false);
}

void add_pieces(const Context& ctx, const GradientSum& sum, const codec::Quantized& out,
                const codec::Rounding& rounding) {
  reduce(ctx, sum, out, rounding, true);
}

}  // namespace agoq::ops
