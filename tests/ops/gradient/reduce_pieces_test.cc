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
