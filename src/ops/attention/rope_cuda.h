// CUDA kernel of ops/attention/rope.h.
#pragma once

#include "ops/attention/rope.h"

namespace agoq::ops::cuda {

// Rotates `heads` heads of `dim` at the beginning of each row by its position; sign -1 rotates back.
void rotate(const Context& ctx, const Tensor& qkv, int64_t heads, int64_t dim, const Tensor& table, float sign);

// The same backward into 8-bit floats with a scale per row, and if `in_place_too` also in place: a CTA holds a row in
// its registers, if it can. bf16, aligned.
constexpr int kRotatedEights = 8, kMostPairGroups = 1024;
constexpr bool rotates_rows(const Heads& heads) {
  return heads.dim % (2 * kRotatedEights) == 0 && heads.cols() / (2 * kRotatedEights) <= kMostPairGroups;
}
void rotate_back_rows(const Context& ctx, const Tensor& dqkv, const Heads& heads, const Tensor& table,
                      const Operand& rows, bool in_place_too);

}  // namespace agoq::ops::cuda
