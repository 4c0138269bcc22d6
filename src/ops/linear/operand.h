// What a product multiplies: numbers, or codes of an 8-bit float with their scales. It is made for one product and then
// forgotten; what is stored is codec::Quantized.
#pragma once

#include "base/tensor.h"

namespace agoq::ops {

// How many numbers share a scale: all of the matrix, a row, 128 of a row that follow each other along k, or a tile of
// 128 rows and 128 of k.
enum class Granularity : uint8_t { None, Tensor, Row, Block1x128, Block128x128 };
std::string_view name_of(Granularity granularity);
inline constexpr int64_t kScaleBlock = 128;
inline constexpr int64_t kScaleAlignment = 16;  // bytes; cuBLASLt does not multiply by scales elsewhere

// Which index runs fastest in memory: k, over which a product sums, or the row (CUTLASS: MN).
enum class Major : uint8_t { K, MN };

// A matrix [rows, k]. data[r, i] · (the scale of its block) is the number: scales multiply.
//
// Scales are fp32 and laid out as cuBLASLt 12.9 reads them on Hopper:
//   Tensor         [1]
//   Row            [rows]
//   Block1x128     [k / 128, rows]
//   Block128x128   [rows / 128, k / 128 padded to a multiple of 4]        quotients are rounded up
// A scale of 0 belongs to zeros. A NaN makes all its numbers NaN: one of them was not finite.
struct Operand {
  Tensor data;       // fp32, bf16, e4m3 or e5m2; [rows, k], or [k, rows] if the major is MN
  Tensor scale;      // none for fp32 and bf16; begins at a multiple of kScaleAlignment
  Tensor max_scale;  // fp32 [1], or none: the largest of the scales of rows, which turning them needs
  Granularity granularity = Granularity::None;
  Major major = Major::K;
  int64_t stride =
      0;  // numbers from one row of data to the next, if it is a part of a wider one: of ops::cuda::multiply's a alone
  Tensor counts;  // int64 [2], or none: who writes the codes adds up there what they do not hold (fp8_counts.h)

  Operand() = default;
  // A matrix without scales is multiplied as it is.
  Operand(const Tensor& matrix) : data(matrix) {}  // NOLINT(google-explicit-constructor)
  Operand(const Tensor& codes, const Tensor& scales, Granularity shared)
      : data(codes), scale(scales), granularity(shared) {}

  int64_t rows() const { return data.shape[major == Major::K ? 0 : 1]; }
  int64_t k() const { return data.shape[major == Major::K ? 1 : 0]; }
  DType dtype() const { return data.dtype; }
};

// The transpose of a matrix [k, rows], as it lies in memory.
Operand transposed(const Tensor& matrix);

constexpr bool is_fp8(DType dtype) {
  return dtype == DType::E4M3 || dtype == DType::E5M2;
}

// The least k at or above `k` that a product of 8-bit floats takes: a multiple of 16, with blocks of 128. Codes of what
// is added are zero.
int64_t padded_k(int64_t k, Granularity granularity);
Shape scale_shape(int64_t rows, int64_t k, Granularity granularity);
// The index in `scale` of the scale of number [row, i].
int64_t scale_index(const Operand& x, int64_t row, int64_t i);

// Rows [begin, end) of an operand whose major is k. With a scale per 1x128 those of some rows lie apart, and with one
// per 128x128 a range begins at a multiple of 128: an error otherwise.
Operand rows_of(const Operand& x, int64_t begin, int64_t end);

// Error that names `op` if types, shapes, padding or scales do not fit together.
void check_operand(const Operand& x, const char* op);

}  // namespace agoq::ops
