#include "ops/gradient/reduce_pieces.h"

#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

class SumPiecesCuda : public CudaTest {};

// Whole blocks, short ones, segments that do not begin at multiples of 8.
TEST_F(SumPiecesCuda, SameBitsAsOnTheCpu) {
  const std::vector<std::pair<int64_t, RowBlocks>> shapes = {
      {300, RowBlocks(4096)}, {9, RowBlocks(1376 * 8, 1376)}, {5, RowBlocks(999, 333)}, {1, RowBlocks(1)}};
  for (const Codec codec : {Codec::Int8, Codec::Fp8, Codec::Fp6, Codec::Fp4, Codec::Bf16, Codec::Fp32})
    for (const auto& [rows, row] : shapes)
      for (const int pieces : {1, 3, 6}) {
        start(DType::BF16, size_t{128} << 20);
        const int64_t piece_rows = rows + 1;
        const QuantizedTwin q = encoded(cpu->random({pieces * piece_rows, row.cols}, 1, DType::F32), codec, row);
        const QuantizedTwin out = kept(codec, rows, row);
        codec::Rounding rounding = codec::Rounding::random(c().random);
        rounding.global_offset.first_row = 17;
        sum_pieces(c(), {q.cpu.row_range(0, rows), pieces, piece_rows}, out.cpu, rounding);
        sum_pieces(g(), {q.gpu.row_range(0, rows), pieces, piece_rows}, out.gpu, rounding);
        expect_same_bits(out.cpu, out.gpu, "sum of pieces");
        sum_pieces(g(), {q.gpu.row_range(0, rows), pieces, piece_rows}, q.gpu.row_range(0, rows), rounding);
        expect_same_bits(out.cpu, q.gpu.row_range(0, rows), "in place");
      }
}

// As many ranks as tests go up to: pieces of one row each, which lie a row apart or further.
TEST_F(SumPiecesCuda, OfAThousandRanksSameBitsAsOnTheCpu) {
  const RowBlocks row(1024);
  for (const Codec codec : {Codec::Int8, Codec::Fp8})
    for (const int64_t piece_rows : {1, 3}) {
      start(DType::BF16, size_t{128} << 20);
      const QuantizedTwin q = encoded(cpu->random({1024 * piece_rows, row.cols}, 1, DType::F32), codec, row);
      const QuantizedTwin out = kept(codec, 1, row);
      const codec::Rounding rounding = codec::Rounding::random(c().random);
      sum_pieces(c(), {q.cpu.row_range(0, 1), 1024, piece_rows}, out.cpu, rounding);
      sum_pieces(g(), {q.gpu.row_range(0, 1), 1024, piece_rows}, out.gpu, rounding);
      expect_same_bits(out.cpu, out.gpu, "sum of 1024 pieces");
    }
}

}  // namespace
}  // namespace agoq::ops::test
