#include "ops/gradient/reduce_pieces_cpu.h"

#include "ops/cpu.h"

namespace agoq::ops::cpu {

void sum_pieces(const GradientSum& sum, const codec::Quantized& out, const codec::Rounding& rounding, bool add) {
  parallel_for(out.rows, [&](int64_t r, int) {
    for (int64_t block = 0; block < out.row.blocks(); ++block) {
      alignas(64) float x[codec::kBlock];
      decode_block(sum, r, block, x);
      if (add) {
        alignas(64) float so_far[codec::kBlock];
        codec::decode_block(out, r, block, so_far);
        for (int64_t i = 0; i < out.row.size(block); ++i) x[i] += so_far[i];
      }
      codec::encode_block(out, r, block, x, rounding);
    }
  });
}

}  // namespace agoq::ops::cpu
