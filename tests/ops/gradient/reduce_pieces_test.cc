#include "ops/gradient/reduce_pieces.h"

#include "ops/support.h"

namespace agoq::ops {
namespace {

using codec::Codec;
using test::TestContext;

constexpr int64_t kRows = 9, kPieceRows = 10, kCols = 300;
constexpr int kPieces = 3;

codec::Quantized random_pieces(TestContext& t, Codec codec) {
  const codec::Quantized storage = t.kept(codec, kPieces * kPieceRows, codec::RowBlocks(kCols, 150));
  codec::encode(t.ctx, t.random({kPieces * kPieceRows, kCols}, 1, DType::F32), storage);
  return storage;
}

std::vector<uint8_t> bytes(const Tensor& t) {
  return {t.raw(), t.raw() + t.bytes()};
}

TEST(SumPieces, AddsInOrderAndEncodesOnce) {
  for (const Codec codec : {Codec::Int8, Codec::Fp8, Codec::Fp4, Codec::Bf16, Codec::Fp32}) {
    TestContext t;
    const codec::Quantized storage = random_pieces(t, codec);
    const Tensor all = t.decoded(storage), sum = t.zeros({kRows, kCols}, DType::F32);
    for (int64_t i = 0; i < sum.count(); ++i)
      for (int64_t j = 0; j < kPieces; ++j) sum.as<float>()[i] += all.as<float>()[j * kPieceRows * kCols + i];
    codec::Rounding rounding = codec::Rounding::random(t.ctx.random);
    rounding.global_offset.first_row = 40;
    const codec::Quantized want = t.kept(codec, kRows, storage.row), got = t.kept(codec, kRows, storage.row);
    codec::encode(t.ctx, sum, want, rounding);
    const GradientSum pieces{storage.row_range(0, kRows), kPieces, kPieceRows};
    sum_pieces(t.ctx, pieces, got, rounding);
    EXPECT_EQ(bytes(got.codes), bytes(want.codes));
    sum_pieces(t.ctx, pieces, pieces.first, rounding);
    EXPECT_EQ(bytes(pieces.first.codes), bytes(want.codes)) << "in place";
    if (!want.scales) continue;
    EXPECT_EQ(bytes(got.scales), bytes(want.scales));
    EXPECT_EQ(bytes(pieces.first.scales), bytes(want.scales)) << "in place";
  }
}

// 1024 ranks. Each piece is rounded stochastically, by draws of its own, and so is their sum: over many steps the mean
// is the fp64 sum of what the ranks had.
TEST(SumPieces, OfAThousandRanksIsUnbiased) {
  constexpr int64_t kRanks = 1024, kNumbers = 256, kSteps = 64;
  TestContext t;
  const codec::RowBlocks row(kNumbers);
  const Tensor partial_sums = t.random({kRanks, kNumbers}, 1, DType::F32);
  const codec::Quantized pieces = t.kept(Codec::Int8, kRanks, row), out = t.kept(Codec::Int8, 1, row);
  std::vector<double> exact(kNumbers), mean(kNumbers);
  for (int64_t i = 0; i < partial_sums.count(); ++i)
    exact[static_cast<size_t>(i % kNumbers)] += partial_sums.as<float>()[i];
  double pieces_variance = 0, sum_step = 0;  // of one step's sum
  for (int64_t step = 0; step < kSteps; ++step) {
    t.ctx.random.step = static_cast<uint32_t>(step);
    for (int64_t rank = 0; rank < kRanks; ++rank) {
      RandomKey key = t.ctx.random;
      key.stream = RngStream::WireGradient;
      key.micro_batch = static_cast<uint32_t>(2 * rank);
      codec::encode(t.ctx, partial_sums.row_range(rank, rank + 1), pieces.row_range(rank, rank + 1),
                    codec::Rounding::random(key));
    }
    RandomKey key = t.ctx.random;
    key.stream = RngStream::ReducedGradient;
    const GradientSum sum{pieces.row_range(0, 1), kRanks, 1};
    sum_pieces(t.ctx, sum, out, codec::Rounding::random(key));
    const Tensor decoded = t.decoded(out);
    for (int64_t i = 0; i < kNumbers; ++i) mean[static_cast<size_t>(i)] += decoded.as<float>()[i] / double{kSteps};
    // In order, and in fp32: what update and norm read.
    float block[codec::kBlock];
    decode_block(sum, 0, 1, block);
    const Tensor all = t.decoded(pieces);
    for (int64_t i = 0; i < codec::kBlock; ++i) {
      float want = 0;
      for (int64_t rank = 0; rank < kRanks; ++rank) want += all.as<float>()[rank * kNumbers + codec::kBlock + i];
      ASSERT_EQ(block[i], want) << "number " << i;
    }
    if (step > 0) continue;
    for (int64_t rank = 0; rank < kRanks; ++rank)  // at most a quarter of a step squared, for each rounding
      pieces_variance += std::pow(to_float(pieces.scales.as<Bf16>()[2 * rank]), 2) / 4;
    sum_step = to_float(out.scales.as<Bf16>()[0]);
  }
  const double deviation = std::sqrt((pieces_variance + sum_step * sum_step / 4) / kSteps);
  double bias = 0, squares = 0;
  for (size_t i = 0; i < kNumbers; ++i) {
    const double error = mean[i] - exact[i];
    EXPECT_LE(std::abs(error), 5 * deviation) << "number " << i;
    bias += error / kNumbers;
    squares += error * error / kNumbers;
  }
  EXPECT_LE(std::abs(bias), 4 * deviation / std::sqrt(kNumbers));
  EXPECT_GE(std::sqrt(squares), deviation / 10) << "it is rounded at all";
}

TEST(SumPieces, RefusesWhatDoesNotFit) {
  TestContext t;
  const codec::Quantized storage = random_pieces(t, Codec::Int8);
  const codec::Quantized out = t.kept(Codec::Int8, kRows, storage.row);
  const auto sum = [&](const GradientSum& pieces, const codec::Quantized& to) {
    sum_pieces(t.ctx, pieces, to, codec::Rounding::nearest());
  };
  const codec::Quantized first = storage.row_range(0, kRows);
  EXPECT_THROW(sum({first, kPieces, kRows - 1}, out), Error) << "pieces overlap";
  EXPECT_THROW(sum({first, 0, kPieceRows}, out), Error);
  EXPECT_THROW(sum({first, kPieces, kPieceRows}, out.row_range(0, kRows - 1)), Error);
  EXPECT_THROW(sum({first, kPieces, kPieceRows}, t.kept(Codec::Fp8, kRows, storage.row)), Error);
}

}  // namespace
}  // namespace agoq::ops
