// How a parameter is held, and how ops get to read it in the compute type.
#pragma once

#include "base/philox.h"
#include "device/context.h"

namespace agoq::ops {

// One of these forms (design 4, "exact fp32 master"):
//   split  value bf16 + correction int16: fp32_bits = (bf16_bits << 16) + correction, exactly
//   fp32   value fp32, nothing else
//   both   value bf16 (what GEMMs read) + master fp32
//   high   value bf16 alone: what is exact lies on another rank (ZeRO-1)
struct Weight {
  Tensor value;
  Tensor correction;
  Tensor master;
  Weight row_range(int64_t begin, int64_t end) const;  // rows of a matrix, elements of a vector
};

// fp32 -> bf16 rounded to nearest, ties up, so that the difference fits 16 signed bits.
AGOQ_HD inline void split_fp32(float x, Bf16& high, int16_t& low) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t h = (u + 0x8000u) >> 16;
  high.bits = static_cast<uint16_t>(h);
  low = static_cast<int16_t>(static_cast<uint16_t>(u - (h << 16)));
}
AGOQ_HD inline float join_fp32(Bf16 high, int16_t low) {
  return std::bit_cast<float>((uint32_t{high.bits} << 16) + static_cast<uint32_t>(static_cast<int32_t>(low)));
}

// The weight in the compute type: itself where it is held so, otherwise widened or rounded into a temporary (one layer
// at a time).
Tensor in_compute_type(const Context& ctx, const Weight& w);
// Exact fp32 values on the host <-> the held form on any device (initialisation, import, export); of the form `high`
// only what it holds is stored, and nothing exact can be loaded. They pass through host memory of the weight's size, so
// large weights go in parts (row_range).
void store_fp32(const Context& ctx, const Weight& w, const float* values);
void load_fp32(const Context& ctx, const Weight& w, float* values);

// Where the first numbers of a matrix come from, and which of the unsharded matrix they are.
struct NormalRows {
  RandomKey key;
  float deviation = 0;
  int64_t cols = 0;                      // of the unsharded matrix
  int64_t first_row = 0, first_col = 0;  // where the weight begins in it

  AGOQ_HD int64_t groups_per_row() const { return (cols + 3) / 4; }
  // Numbers 4 · group .. 4 · group + 3 of a row of the unsharded matrix.
  AGOQ_HD std::array<float, 4> four(int64_t row, int64_t group) const {
    const Philox4 words = key.draw(static_cast<uint64_t>(row * groups_per_row() + group));
    const auto a = normal_pair(words[0], words[1]), b = normal_pair(words[2], words[3]);
    return {a[0] * deviation, a[1] * deviation, b[0] * deviation, b[1] * deviation};
  }
};
// w [r, c] := normal numbers that depend only on the key and on the place in the unsharded matrix. A GPU's logarithm
// and sine may differ from the CPU's in the last bit of fp32.
void fill_normal(const Context& ctx, const Weight& w, const NormalRows& rows);

}  // namespace agoq::ops
