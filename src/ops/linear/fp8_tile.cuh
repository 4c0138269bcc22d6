// Turning a tile of an operand: 128 tokens (k) of 128 columns, read row by row and written column by column, each way
// in whole lines of memory.
#pragma once

#include "ops/linear/fp8_codes.cuh"

namespace agoq::ops::cuda {

// Codes on their way: word q of column c has those of tokens 4q to 4q + 3. Words of a column are turned by its place,
// so that the lanes of a warp, which write neighbouring columns, meet in few banks.
class TurnedTile {
 public:
  static constexpr int kColumns = 128, kTokens = 128, kThreads = 256;
  static constexpr int kQuads = kTokens / 4;

  __device__ void put(int column, int quad, uint32_t codes) { words()[at(column, quad)] = codes; }

  // Writes the columns below `columns` as rows `first_row` and on of `out` [rows, pitch] from token `first_token` on.
  // All threads come here after their last put().
  __device__ void flush(uint8_t* out, int64_t pitch, int64_t first_row, int columns, int64_t first_token) const {
    __syncthreads();
    constexpr int kParts = kTokens / 16;  // of a column, sixteen bytes each
    for (int i = static_cast<int>(threadIdx.x); i < kColumns * kParts; i += kThreads) {
      const int column = i / kParts, part = i % kParts;
      const int64_t token = first_token + part * 16;
      if (column < columns && token < pitch)
        *reinterpret_cast<uint4*>(out + (first_row + column) * pitch + token) =
            *reinterpret_cast<const uint4*>(words() + at(column, part * 4));
    }
  }

 private:
  __device__ static int at(int column, int quad) { return column * kQuads + (quad + column / 16 * 4) % kQuads; }
  __device__ static uint32_t* words() {
    __shared__ __align__(16) uint32_t words[kColumns * kQuads];
    return words;
  }
};

// An operand [rows, tokens padded] whose tiles are written so.
struct Fp8Columns {
  uint8_t* codes = nullptr;
  int64_t pitch = 0;
  int tokens = 0;
  LostNumbers lost;

  Fp8Columns() = default;
  Fp8Columns(const Operand& out, int64_t count)
      : codes(out.data.raw()), pitch(out.k()), tokens(static_cast<int>(count)), lost(out) {}
};

// Makes a tile of numbers: source(token, lane, x) gives eight of rows `token` to `token` + 3, those of columns 8·lane
// to 8·lane + 7 of the tile, which are multiplied by the thread's `inv`. What it gives beyond the last token does not
// matter; columns beyond `columns` are zeros.
template <class Format, bool kCounts, class Source>
__device__ inline void write_turned(const Fp8Columns& out, const codec::FloatVec8& inv, int64_t first_row, int columns,
                                    int first_token, const Source& source) {
  using namespace codec::cuda;
  constexpr int kPerPass = TurnedTile::kThreads / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  constexpr Fp8Format kFormat(Format::kMantissaBits == 2 ? DType::E5M2 : DType::E4M3);
  TurnedTile tile;
#pragma unroll
  for (int pass = 0; pass < TurnedTile::kQuads; pass += kPerPass) {
    const int quad = pass + static_cast<int>(threadIdx.x) / kLanes, token = first_token + 4 * quad;
    const int there = min(max(out.tokens - token, 0), 4);  // of the four tokens
    const uint32_t mask = there == 0 ? 0u : ~0u >> (32 - 8 * there);
    FloatVec8 x[4];
    source(token, lane, x);
    if constexpr (kCounts) {
#pragma unroll
      for (int t = 0; t < 4; ++t)
        if (t < there) out.lost.add8(kFormat, x[t], [&](int i) { return inv[i]; });
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const auto two = [&](int t) { return fp8_pair<Format>(x[t][i] * inv[i], x[t + 1][i] * inv[i]); };
      tile.put(lane * kGroup + i, quad, inv[i] > 0 ? (two(0) | two(2) << 16) & mask : 0u);
    }
  }
  tile.flush(out.codes, out.pitch, first_row, columns, first_token);
}

// CTAs of `columns` columns and `tokens` tokens: neighbours along the tokens write neighbouring memory.
inline dim3 turned_grid(int64_t tokens, int64_t columns) {
  require(columns <= int64_t{65535} * TurnedTile::kColumns, "{} columns are too many for one kernel", columns);
  return {static_cast<unsigned>((tokens + TurnedTile::kTokens - 1) / TurnedTile::kTokens),
          static_cast<unsigned>((columns + TurnedTile::kColumns - 1) / TurnedTile::kColumns)};
}

}  // namespace agoq::ops::cuda
