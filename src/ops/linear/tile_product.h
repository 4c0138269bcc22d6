// Products of small fp32 matrices that lie in a core's cache, for kernels that are parallel outside (attention).
#pragma once

#include <cstdint>
#include <cstring>

namespace agoq::ops::cpu {

// Lanes of the machine's vectors, and rows whose sums fit its registers. Columns of b and c are padded to kTileColumns.
#if defined(__AVX512F__)
inline constexpr int kTileLanes = 16, kTileRows = 8;
#elif defined(__AVX__)
inline constexpr int kTileLanes = 8, kTileRows = 4;
#else
inline constexpr int kTileLanes = 4, kTileRows = 4;
#endif
inline constexpr int64_t kTileColumns = 16;

inline int64_t padded(int64_t columns) {
  return (columns + kTileColumns - 1) / kTileColumns * kTileColumns;
}

// a(i, p) = data[i · row + p · column]: a matrix or its transpose.
struct TileOperand {
  const float* data;
  int64_t row, column;
};

namespace tile_detail {

using Lanes __attribute__((vector_size(sizeof(float) * kTileLanes))) = float;

// a · b + c, fused where that is one instruction.
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
#if defined(__FP_FAST_FMAF)
  Lanes sum;
#pragma GCC unroll 16
  for (int l = 0; l < kTileLanes; ++l) sum[l] = __builtin_fmaf(a[l], b[l], c[l]);
  return sum;
#else
  return a * b + c;
#endif
}

// c [kRows, kVectors lanes] (+)= a [kRows, k] · b [k, kVectors lanes]. The sums stay in registers as long as every
// access to them is of one vector at an unrolled index.
template <int kRows, int kVectors, bool kAdd>
inline void product(int64_t k, TileOperand a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  Lanes sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      if constexpr (kAdd) std::memcpy(&sums[i][j], c + i * ldc + j * kTileLanes, sizeof(Lanes));
      if constexpr (!kAdd) sums[i][j] = Lanes{};
    }
  for (int64_t p = 0; p < k; ++p) {
    Lanes row[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) std::memcpy(&row[j], b + p * ldb + j * kTileLanes, sizeof(Lanes));
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Lanes scalar = a.data[i * a.row + p * a.column] - Lanes{};
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sums[i][j] = multiply_add(scalar, row[j], sums[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) std::memcpy(c + i * ldc + j * kTileLanes, &sums[i][j], sizeof(Lanes));
}

template <int kRows, bool kAdd>
inline void product_rows(int64_t n, int64_t k, TileOperand a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  int64_t j = 0;
  for (; j + 2 * kTileLanes <= n; j += 2 * kTileLanes) product<kRows, 2, kAdd>(k, a, b + j, ldb, c + j, ldc);
  for (; j < n; j += kTileLanes) product<kRows, 1, kAdd>(k, a, b + j, ldb, c + j, ldc);
}

}  // namespace tile_detail

// c [m, n] = a [m, k] · b [k, n], or += if kAdd; n is a multiple of kTileColumns.
template <bool kAdd>
void tile_product(int64_t m, int64_t n, int64_t k, TileOperand a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  const auto from = [&](int64_t i) { return TileOperand{a.data + i * a.row, a.row, a.column}; };
  int64_t i = 0;
  for (; i + kTileRows <= m; i += kTileRows)
    tile_detail::product_rows<kTileRows, kAdd>(n, k, from(i), b, ldb, c + i * ldc, ldc);
  for (; i + 2 <= m; i += 2) tile_detail::product_rows<2, kAdd>(n, k, from(i), b, ldb, c + i * ldc, ldc);
  for (; i < m; ++i) tile_detail::product_rows<1, kAdd>(n, k, from(i), b, ldb, c + i * ldc, ldc);
}

}  // namespace agoq::ops::cpu
