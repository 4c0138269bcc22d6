// Where numbers and their codes lie.
//
// A tile is a lane's share of a block: which block of its row or tensor (`block`), which of the sixteen lanes (`lane`),
// how many numbers the lane (`n`) and the block (`size`) have, and where the lane's codes are in an array. There are
// tiles of a row, whose codes have any number of bits, and of a whole tensor, where those are whole bytes; each with a
// form for blocks that are whole and aligned, which takes fewer instructions.
#pragma once

#include "codec/lane_numbers.cuh"

namespace agoq::codec::cuda {

// Bytes of the codes of n numbers, without a switch over codecs (host: block_bytes).
template <class F>
__host__ __device__ constexpr int code_bytes(int n) {
  if constexpr (F::kBits >= 8) return n * (F::kBits / 8);
  return ceil_div(n, 2) + ceil_div(n * (F::kBits - 4), 8);
}

// n / d for n < 2^31 by one multiplication and a shift (Granlund and Montgomery 1994).
class FastDivmod {
 public:
  FastDivmod() = default;
  explicit FastDivmod(uint32_t d)
      : shift_(31 + static_cast<int>(std::bit_width(d - 1))),
        multiplier_(static_cast<uint32_t>(((uint64_t{1} << shift_) + d - 1) / d)) {}
  __host__ __device__ uint32_t divide(uint32_t n) const {
    return static_cast<uint32_t>(uint64_t{n} * multiplier_ >> shift_);
  }

 private:
  int shift_ = 0;
  uint32_t multiplier_ = 0;
};

// --- tiles -----------------------------------------------------------------------------------------------------------

// What all tiles have: of any block, and of a whole one.
template <class Count>
struct BlockShare {
  int block = 0;
  int lane = 0;  // 0 to 15: the lane's group in the block
  Count n{};     // how many numbers it has
  int size = 0;  // numbers in the block
};
struct WholeBlockShare {
  int block = 0, lane = 0;
  AllOrNone n;
  static constexpr int size = kBlock;
};

// Whether there is such a block.
template <class Count>
__device__ inline bool exists(const BlockShare<Count>& p) {
  return p.size > 0;
}
__device__ inline bool exists(const WholeBlockShare& p) {
  return p.n.all;
}

// How many of a block's numbers are a lane's.
__device__ inline int lane_count(int size, int lane) {
  return min(max(size - lane * kGroup, 0), kGroup);
}
template <class Count>
__device__ inline Count count_of(int size, int lane) {
  if constexpr (std::is_same_v<Count, AllOrNone>)
    return {size > lane * kGroup};
  else
    return lane_count(size, lane);
}

// In a row.
template <class Share>
struct RowTile : Share {
  int col = 0;     // of the lane's first number in the row
  int offset = 0;  // of the block's codes in the row's codes, in bytes

  // The lane's codes of 8 bits or more, or else their low 4; and what is above those.
  template <int kBits>
  __device__ uint8_t* group(uint8_t* codes) const {
    return codes + (offset + this->lane * (kBits < 8 ? 4 : kBits));
  }
  template <int kBits>
  __device__ uint8_t* tops(uint8_t* codes) const {
    return codes + offset + ceil_div(this->size, 2) + this->lane * (kBits - 4);
  }
};
using LaneTile = RowTile<BlockShare<int>>;
using EvenLaneTile = RowTile<BlockShare<AllOrNone>>;  // of RowBlocks::even(), where all memory is aligned
using WholeLaneTile = RowTile<WholeBlockShare>;

// In a tensor whose rows follow one another without gaps. Many arrays have numbers at the same place.
struct ListTile : BlockShare<KnownCount> {
  int64_t begin = 0;  // the block's first number

  template <int kBits>
  __device__ uint8_t* group(uint8_t* codes) const {
    static_assert(kBits % 8 == 0);
    return codes + (begin + lane * kGroup) * (kBits / 8);
  }
};
// Its address is one instruction.
struct WholeListTile : WholeBlockShare {
  template <int kBits>
  __device__ uint8_t* group(uint8_t* codes) const {
    static_assert(kBits % 8 == 0);
    struct Group {
      uint8_t bytes[kGroup * kBits / 8];
    };
    return reinterpret_cast<Group*>(codes)[static_cast<uint32_t>(block * kLanes + lane)].bytes;
  }
};

// The lane's numbers where they are stored as they are.
template <class Number, class P>
__device__ inline Number* numbers_of(Number* array, const P& p) {
  return reinterpret_cast<Number*>(p.template group<8 * sizeof(Number)>(reinterpret_cast<uint8_t*>(array)));
}

// --- what says where blocks begin ------------------------------------------------------------------------------------

// RowBlocks for a kernel: 32-bit, without divisions where a row is one segment or has no short blocks.
struct RowLayout {
  int cols = 0, segment = 0, per_segment = 0, blocks = 0;
  bool seamless = false;  // block b begins at column 128 b
  FastDivmod by_segment;  // block -> segment

  RowLayout() = default;
  explicit RowLayout(const RowBlocks& row)
      : cols(static_cast<int>(row.cols)),
        segment(static_cast<int>(row.segment)),
        per_segment(static_cast<int>(row.blocks_per_segment())),
        blocks(static_cast<int>(row.blocks())),
        seamless(row.segment == row.cols || row.segment % kBlock == 0),
        by_segment(static_cast<uint32_t>(per_segment)) {}

  // Lane `lane` of block `block`; a block beyond the row has no numbers.
  template <class F, class Count = int>
  __device__ RowTile<BlockShare<Count>> place(int block, int lane) const {
    if (block >= blocks) return {{block, lane}};
    int begin = block * static_cast<int>(kBlock), end = cols, offset = 0;
    if (seamless) {
      offset = block * code_bytes<F>(kBlock);
    } else {
      const int segment_index = static_cast<int>(by_segment.divide(static_cast<uint32_t>(block)));
      const int within = block - segment_index * per_segment;
      begin = segment_index * segment + within * static_cast<int>(kBlock);
      end = (segment_index + 1) * segment;
      const int last = segment - (per_segment - 1) * static_cast<int>(kBlock);
      offset = segment_index * ((per_segment - 1) * code_bytes<F>(kBlock) + code_bytes<F>(last)) +
               within * code_bytes<F>(kBlock);
    }
    const int size = min(end - begin, static_cast<int>(kBlock));
    return {{block, lane, count_of<Count>(size, lane), size}, begin + lane * kGroup, offset};
  }

  // No block of either half is short.
  bool whole_halves() const { return seamless && cols % (2 * static_cast<int>(kBlock)) == 0; }
  // The same of a row of whole blocks, of which this one exists or not.
  template <class F>
  __device__ static WholeLaneTile place_whole(int block, int lane, bool there) {
    return {{block, lane, {there}}, block * static_cast<int>(kBlock) + lane * kGroup, block * code_bytes<F>(kBlock)};
  }
};

// The blocks of a tensor one after another, segment after segment and row after row; where no block is short, all are
// alike.
struct ListLayout {
  int count = 0;
  int segment = 0;      // numbers in a segment
  int per_segment = 1;  // blocks
  bool aligned = true;  // eight numbers can be loaded at once

  ListLayout() = default;
  explicit ListLayout(const Quantized& q) {
    const int64_t blocks = q.rows * q.row.blocks();
    require(blocks < int64_t{1} << 27, "a tensor of {} blocks is too large: kernels count their groups of 8 in 31 bits",
            blocks);
    count = static_cast<int>(blocks);
    segment = static_cast<int>(q.row.segment % kBlock == 0 ? kBlock : q.row.segment);
    per_segment = ceil_div(segment, static_cast<int>(kBlock));
    aligned = segment % kGroup == 0;
  }
  // No block is short, and warps, which have two, stay whole.
  __device__ bool whole_pairs() const { return aligned && segment == static_cast<int>(kBlock) && count % 2 == 0; }
  // A block beyond the last one has no numbers.
  __device__ ListTile place(int block, int lane) const {
    int segment_index = block, within = 0;
    if (per_segment > 1) {
      segment_index = block / per_segment;
      within = (block - segment_index * per_segment) * static_cast<int>(kBlock);
    }
    const int size = block < count ? min(segment - within, static_cast<int>(kBlock)) : 0;
    const int n = lane_count(size, lane);
    return {{block, lane, {n, aligned && n == kGroup}, size}, static_cast<int64_t>(segment_index) * segment + within};
  }
  // Lane `lane` of block `block` where whole_pairs().
  __device__ static WholeListTile place_whole(int block, int lane) { return {{block, lane, {true}}}; }
};

// --- pointers --------------------------------------------------------------------------------------------------------

// Codes and scales of a Quantized, or of its rows from one on. A tile says where they are a lane's.
struct QuantPtr {
  uint8_t* codes = nullptr;
  Bf16* scales = nullptr;

  QuantPtr() = default;
  explicit QuantPtr(const Quantized& q)
      : codes(q.kept() ? q.codes.raw() : nullptr), scales(q.scales ? static_cast<Bf16*>(q.scales.data) : nullptr) {}
  bool aligned() const { return reinterpret_cast<uintptr_t>(codes) % 16 == 0; }
  __device__ QuantPtr after(int64_t bytes, int64_t blocks) const {
    QuantPtr moved = *this;
    moved.advance(bytes, blocks);
    return moved;
  }
  __device__ void advance(int64_t bytes, int64_t blocks) {
    codes += bytes;
    scales += blocks;
  }
};

// The same with how its rows lie and are divided; a tensor that is not kept may still say how they are divided.
struct QuantRows : QuantPtr {
  int64_t row_bytes = 0;
  RowLayout row;

  QuantRows() = default;
  explicit QuantRows(const Quantized& q)
      : QuantPtr(q),
        row_bytes(q.kept() ? q.codes.cols() : 0),
        row(q.row.segment > 0 ? RowLayout(q.row) : RowLayout()) {}
  // From row r on. A kernel that goes down row by row saves the products: it advances what this returns.
  __device__ QuantPtr at(int64_t r) const { return after(r * row_bytes, r * row.blocks); }
};

}  // namespace agoq::codec::cuda
