#include "ops/gradient/gradient_sum.h"

namespace agoq::ops {

void check_sum(const GradientSum& sum, const char* op) {
  require(sum.first.kept(), "{}: a gradient has codec none", op);
  require(sum.pieces >= 1, "{}: a gradient has {} pieces, expected 1 or more", op, sum.pieces);
  require(sum.pieces == 1 || sum.piece_rows >= sum.first.rows,
          "{}: the pieces of a gradient have {} rows and lie {} rows apart: they overlap", op, sum.first.rows,
          sum.piece_rows);
}

void decode_block(const GradientSum& sum, int64_t row, int64_t block, float* x) {
  codec::decode_block(sum.first, row, block, x);
  const int64_t n = sum.first.row.size(block);
  for (int j = 1; j < sum.pieces; ++j) {
    float partial_sum[codec::kBlock];
    codec::decode_block(sum.first, row + j * sum.piece_rows, block, partial_sum);
    for (int64_t i = 0; i < n; ++i) x[i] += partial_sum[i];
  }
}

}  // namespace agoq::ops
