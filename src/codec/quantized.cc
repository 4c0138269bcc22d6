#include "codec/quantized.h"

#include <array>

#include "base/error.h"
#include "base/integers.h"
#include "codec/dispatch.h"

namespace agoq::codec {
namespace {

// In the order of the enumeration.
constexpr std::array<std::string_view, 12> kNames = {"none", "fp32", "bf16", "fp8",  "int8", "fp6",
                                                     "fp5",  "fp4",  "nf4",  "int4", "dyn8", "dyn8_unsigned"};

}  // namespace

std::string_view name_of(Codec codec) {
  const auto index = static_cast<size_t>(codec);
  return index < kNames.size() ? kNames[index] : "unknown";
}

std::optional<Codec> codec_from_name(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == name) return static_cast<Codec>(i);
  return std::nullopt;
}

int code_bits(Codec codec) {
  if (codec == Codec::None) return 0;
  return dispatch(codec, []<class F>() { return F::kBits; });
}

bool has_scales(Codec codec) {
  if (codec == Codec::None) return false;
  return dispatch(codec, []<class F>() { return F::kScaled; });
}

Codec plain_codec(DType dtype) {
  require(dtype == DType::F32 || dtype == DType::BF16, "no codec stores {} as it is: use fp32 or bf16",
          agoq::name_of(dtype));
  return dtype == DType::BF16 ? Codec::Bf16 : Codec::Fp32;
}

RowBlocks::RowBlocks(int64_t columns, int64_t segment_columns) : cols(columns), segment(segment_columns) {
  require(columns > 0 && segment_columns > 0 && columns % segment_columns == 0,
          "a row of {} columns cannot be cut into segments of {}: both must be positive and the first a multiple",
          columns, segment_columns);
}

int64_t RowBlocks::size(int64_t b) const {
  const int64_t left = segment - b % blocks_per_segment() * kBlock;
  return left < kBlock ? left : kBlock;
}

int64_t block_bytes(Codec codec, int64_t n) {
  const int bits = code_bits(codec);
  if (bits >= 8 || bits == 0) return n * (bits / 8);
  return ceil_div(n, 2) + ceil_div(n * (bits - 4), 8);  // the plane of nibbles and that of the bits above
}

int64_t row_bytes(Codec codec, const RowBlocks& row) {
  if (row.cols == 0) return 0;
  const int64_t whole = row.segment / kBlock, rest = row.segment % kBlock;
  return row.segments() * (whole * block_bytes(codec, kBlock) + block_bytes(codec, rest));
}

int64_t full_row_bytes(Codec codec, const RowBlocks& row) {
  const int64_t scales = has_scales(codec) ? row.blocks() * static_cast<int64_t>(sizeof(Bf16)) : 0;
  return row_bytes(codec, row) + scales;
}

Quantized Quantized::row_range(int64_t begin, int64_t end) const {
  Quantized part = *this;
  part.rows = end - begin;
  part.codes = codes.row_range(begin, end);
  if (scales) part.scales = scales.row_range(begin, end);
  return part;
}

Tensor Quantized::plain() const {
  require(codec == Codec::Fp32 || codec == Codec::Bf16, "a tensor kept as {} has codes, not plain numbers: decode it",
          name_of(codec));
  return Tensor{codes.data, codec == Codec::Fp32 ? DType::F32 : DType::BF16, device, {rows, row.cols}};
}

}  // namespace agoq::codec
