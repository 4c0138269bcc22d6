// Codec names, the division of a row into blocks, and `Quantized`: one type for stored activations, gradients, moments
// and what travels between ranks. Formats are defined in codec/formats.h; docs/formats.md explains them.
#pragma once

#include <limits>
#include <optional>
#include <string_view>

#include "base/philox.h"
#include "base/tensor.h"

namespace agoq::codec {

// None: the tensor is not kept (backward recomputes it). Fp32 and Bf16 store numbers as they are, without scales.
enum class Codec : uint8_t { None, Fp32, Bf16, Fp8, Int8, Fp6, Fp5, Fp4, Nf4, Int4, Dyn8, Dyn8Unsigned };

inline constexpr int64_t kBlock = 128;  // elements that share a scale

std::string_view name_of(Codec codec);  // "fp4", ...
std::optional<Codec> codec_from_name(std::string_view name);
int code_bits(Codec codec);  // bits per element without the scale
bool has_scales(Codec codec);
Codec plain_codec(DType dtype);  // stores numbers of this type as they are: F32 or BF16, an error for others

// A row of `cols` elements is divided into equal segments (so that no cut over the tensor axis falls inside a block,
// and blocks never cross the borders of q|k|v or gate|up), and each segment into blocks of 128, the last one possibly
// short.
struct RowBlocks {
  int64_t cols = 0;
  int64_t segment = 0;  // divides cols

  RowBlocks() = default;
  explicit RowBlocks(int64_t columns) : RowBlocks(columns, columns) {}
  RowBlocks(int64_t columns, int64_t segment_columns);

  int64_t segments() const { return cols / segment; }
  int64_t blocks_per_segment() const { return (segment + kBlock - 1) / kBlock; }
  int64_t blocks() const { return segments() * blocks_per_segment(); }
  // First column of block b, and how many elements it has.
  int64_t begin(int64_t b) const { return b / blocks_per_segment() * segment + b % blocks_per_segment() * kBlock; }
  int64_t size(int64_t b) const;
  // Every sixteenth of a block has eight numbers or none, and their codes are aligned words in every codec: what the
  // kernels take that write operands of products.
  bool even() const { return segment % 32 == 0; }
  bool operator==(const RowBlocks&) const = default;
};

// Bytes of one block's codes (n elements), and of one row's.
int64_t block_bytes(Codec codec, int64_t n);
int64_t row_bytes(Codec codec, const RowBlocks& row);
int64_t full_row_bytes(Codec codec, const RowBlocks& row);  // with its scales

// A non-owning view of [rows, cols] numbers as codes [rows, row_bytes] and bf16 scales [rows, blocks] (none for Fp32,
// Bf16).
struct Quantized {
  Codec codec = Codec::None;
  Device device = Device::Meta;
  int64_t rows = 0;
  RowBlocks row;
  Tensor codes;   // uint8 [rows, row_bytes]
  Tensor scales;  // bf16 [rows, blocks], or empty

  bool kept() const { return codec != Codec::None; }
  size_t bytes() const { return kept() ? codes.bytes() + (scales ? scales.bytes() : 0) : 0; }
  uint8_t* row_codes(int64_t r) const { return codes.raw() + r * codes.cols(); }
  Bf16* row_scales(int64_t r) const { return static_cast<Bf16*>(scales.data) + r * scales.cols(); }
  Quantized row_range(int64_t begin, int64_t end) const;
  // For Fp32 and Bf16: the stored numbers as a tensor [rows, cols]; an error for other codecs.
  Tensor plain() const;
};

// Where a part of a tensor lies in the whole one. Of its columns it has one run of whole blocks; of its rows up to
// three runs, since q, k and v, or gate and up, are cut each by itself.
struct GlobalOffset {
  static constexpr int kRuns = 3;
  static constexpr int64_t kNoRow = std::numeric_limits<int64_t>::max();

  int64_t first_row = 0;                        // of the part, where only some of its rows are at hand
  int64_t begin[kRuns] = {0, kNoRow, kNoRow};   // rows of the part at which a run begins
  int64_t shift[kRuns] = {};                    // what is added to them to get rows of the whole
  int64_t first_block = 0, blocks_per_row = 0;  // of a row of the whole; 0 blocks: the part's own number

  GlobalOffset from_row(int64_t r) const {
    GlobalOffset rest = *this;
    rest.first_row += r;
    return rest;
  }
  // Row r at hand, as a row of the whole.
  AGOQ_HD constexpr int64_t row(int64_t r) const {
    const int64_t of_part = first_row + r;
    int64_t add = shift[0];
    for (int i = 1; i < kRuns; ++i)
      if (of_part >= begin[i]) add = shift[i];
    return of_part + add;
  }
  // How many of the n rows at hand, from the first on, lie in one run.
  constexpr int64_t run(int64_t n) const {
    for (const int64_t next : begin)
      if (next > first_row && next - first_row < n) n = next - first_row;
    return n;
  }
};

// How numbers become codes. Stochastic rounding draws by the element's place in the unsharded tensor: draw group
// (16 per block) = 16 * (origin.row(row) * blocks_per_row + first_block + block), see rounding_draws in formats.h.
struct Rounding {
  bool stochastic = false;
  RandomKey key;
  GlobalOffset global_offset;

  static Rounding nearest() { return {}; }
  static Rounding random(RandomKey key, const GlobalOffset& global_offset = {}) { return {true, key, global_offset}; }
};

}  // namespace agoq::codec
