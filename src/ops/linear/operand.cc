#include "ops/linear/operand.h"

#include "base/integers.h"

namespace agoq::ops {
namespace {

constexpr int64_t kFp8Alignment = 16;  // of k: 16 bytes
constexpr int64_t kScaleRowPadding = 4;

bool in_blocks(Granularity granularity) {
  return granularity == Granularity::Block1x128 || granularity == Granularity::Block128x128;
}

}  // namespace

std::string_view name_of(Granularity granularity) {
  constexpr std::string_view kNames[] = {"none", "tensor", "row", "1x128", "128x128"};
  return kNames[static_cast<size_t>(granularity)];
}

Operand transposed(const Tensor& matrix) {
  Operand x = matrix;
  x.major = Major::MN;
  return x;
}

int64_t padded_k(int64_t k, Granularity granularity) {
  return round_up(k, in_blocks(granularity) ? kScaleBlock : kFp8Alignment);
}

Shape scale_shape(int64_t rows, int64_t k, Granularity granularity) {
  const int64_t blocks = ceil_div(k, kScaleBlock);
  switch (granularity) {
    case Granularity::None:
      return {};
    case Granularity::Tensor:
      return {1};
    case Granularity::Row:
      return {rows};
    case Granularity::Block1x128:
      return {blocks, rows};
    case Granularity::Block128x128:
      return {ceil_div(rows, kScaleBlock), round_up(blocks, kScaleRowPadding)};
  }
  fail("no granularity {}", static_cast<int>(granularity));
}

int64_t scale_index(const Operand& x, int64_t row, int64_t i) {
  switch (x.granularity) {
    case Granularity::Row:
      return row;
    case Granularity::Block1x128:
      return i / kScaleBlock * x.rows() + row;
    case Granularity::Block128x128:
      return row / kScaleBlock * x.scale.shape[1] + i / kScaleBlock;
    default:
      return 0;
  }
}

Operand rows_of(const Operand& x, int64_t begin, int64_t end) {
  require(x.major == Major::K, "a range of rows is taken of an operand whose major is k");
  if (begin == 0 && end == x.rows()) return x;
  Operand part = x;
  part.data = x.data.row_range(begin, end);
  part.scale.shape = scale_shape(end - begin, x.k(), x.granularity);
  const bool scales_by_rows = x.granularity == Granularity::Row || x.granularity == Granularity::Block128x128;
  if (scales_by_rows && x.scale.data) part.scale.data = x.scale.as<float>() + scale_index(x, begin, 0);
  require(x.granularity != Granularity::Block1x128 &&
              (x.granularity != Granularity::Block128x128 || begin % kScaleBlock == 0),
          "an operand with a scale per {} is not divided at row {}", name_of(x.granularity), begin);
  return part;
}

void check_operand(const Operand& x, const char* op) {
  require(x.data.shape.rank() == 2, "{}: operands have 2 dimensions, not {}", op, x.data.shape.text());
  if (!is_fp8(x.dtype())) {
    require(x.dtype() == DType::F32 || x.dtype() == DType::BF16,
            "{}: operands are fp32, bf16 or an 8-bit float, not {}", op, name_of(x.dtype()));
    return require(!x.scale && x.granularity == Granularity::None, "{}: an operand in {} has no scales", op,
                   name_of(x.dtype()));
  }
  require(x.granularity != Granularity::None && x.scale.dtype == DType::F32 &&
              x.scale.shape == scale_shape(x.rows(), x.k(), x.granularity),
          "{}: an operand {} in {} with a scale per {} has fp32 scales {}, not {} {}", op, x.data.shape.text(),
          name_of(x.dtype()), name_of(x.granularity), scale_shape(x.rows(), x.k(), x.granularity).text(),
          name_of(x.scale.dtype), x.scale.shape.text());
  require(x.k() == padded_k(x.k(), x.granularity), "{}: k of an operand in {} is padded to {}, not {}", op,
          name_of(x.dtype()), padded_k(x.k(), x.granularity), x.k());
}

}  // namespace agoq::ops
