// A gradient that ranks have exchanged: the partial sums of the rows that are this rank's, one of each rank, not yet
// added.
#pragma once

#include "codec/codec.h"

namespace agoq::ops {

// Σ_j piece j, decoded and added in fp32 in the order of j, wherever it is needed; never stored. The pieces lie in one
// storage: row r of piece j is row r + j · piece_rows of `first`, beyond its end. A whole gradient is its only piece.
struct GradientSum {
  codec::Quantized first;  // [rows, cols]
  int pieces = 1;
  int64_t piece_rows = 0;  // at least `first.rows` where there are several
};

void check_sum(const GradientSum& sum, const char* op);

// One block of the sum on the CPU; `x` has first.row.size(block) numbers (at most 128).
void decode_block(const GradientSum& sum, int64_t row, int64_t block, float* x);

}  // namespace agoq::ops
