// Kernels that go over all tensors of a model in one launch: hundreds of launches of small ones would cost more than
// their work.
#pragma once

#include <limits>
#include <type_traits>
#include <vector>

#include "codec/block_cuda.cuh"
#include "ops/gradient/gradient_sum.h"

namespace agoq::ops::cuda {

using codec::kBlock;
using codec::cuda::FloatVec8;
using codec::cuda::kGroup;
using codec::cuda::kLanes;
using codec::cuda::LaneTile;
using codec::cuda::PdlArgs;
using codec::cuda::QuantPtr;

inline constexpr int kThreads = 256;
inline constexpr int kBlocksAtOnce = kThreads / kLanes;

// --- which thread block works on which tensor ------------------------------------------------------------------------

inline constexpr int kMostTensors = 192;  // in one launch: a kernel's parameters are at most 32764 bytes

// What a kernel knows of each of its tensors; tensor i has tiles first[i] to first[i + 1].
template <class Entry>
struct TensorList {
  static_assert(kMostTensors * (sizeof(Entry) + sizeof(int)) < 32000);
  int count = 0;
  int first[kMostTensors + 1] = {};
  Entry entries[kMostTensors];

  void add(const Entry& entry, int64_t tiles) {
    entries[count] = entry;
    first[count + 1] = first[count] + static_cast<int>(tiles);
    ++count;
  }
  bool full() const { return count == kMostTensors; }
  int tiles() const { return first[count]; }
  __device__ int tensor_of(int tile) const {
    int low = 0, high = count;  // first[low] <= tile < first[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first[middle] <= tile ? low : high) = middle;
    }
    return low;
  }
};

template <class Entry>
void append(std::vector<TensorList<Entry>>& lists, const Entry& entry, int64_t tiles) {
  if (lists.empty() || lists.back().full()) lists.emplace_back();
  lists.back().add(entry, tiles);
}

// Which blocks of numbers a CTA works on, kBlocksAtOnce at a time: [first, first + kBlocksAtOnce), then `step` further,
// below `end`.
struct TensorListScheduler {
  int first, end, step;
};

inline constexpr int kTogether = 128;  // CTAs

// Of the CTA for tile `tile` of a tensor of `count` blocks of numbers. kTogether CTAs go over their whole tiles side by
// side: DRAM is fastest where all that is under way at a time lies close together, in few of its rows. (With a tile for
// each, AdamW had 73% of the bandwidth of a copy; like this, 94%.)
template <int kTile>
AGOQ_HD TensorListScheduler walk_of(int tile, int count) {
  static_assert(kTile % kBlocksAtOnce == 0);
  const int whole_tiles = count / kTile;
  if (tile >= whole_tiles) return {tile * kTile, count, kBlocksAtOnce};
  const int place = tile % kTogether, first_tile = tile - place;
  const int left = whole_tiles - first_tile, together = left < kTogether ? left : kTogether;
  return {first_tile * kTile + place * kBlocksAtOnce, (first_tile + together) * kTile, together * kBlocksAtOnce};
}

// --- where numbers lie -----------------------------------------------------------------------------------------------

// The blocks of a tensor one after another, segment after segment and row after row; where no block is short, all are
// alike.
struct Blocks {
  int count = 0;
  int segment = 0;      // numbers in a segment
  int per_segment = 1;  // blocks
  bool aligned = true;  // eight numbers can be loaded at once

  Blocks() = default;
  explicit Blocks(const codec::Quantized& q) {
    const int64_t blocks = q.rows * q.row.blocks();
    require(blocks < int64_t{1} << 27, "a tensor of {} blocks is too large: kernels count their groups of 8 in 31 bits",
            blocks);
    count = static_cast<int>(blocks);
    segment = static_cast<int>(q.row.segment % kBlock == 0 ? kBlock : q.row.segment);
    per_segment = codec::cuda::ceil_div(segment, static_cast<int>(kBlock));
    aligned = segment % kGroup == 0;
  }
  // No block is short, and warps, which have two, stay whole.
  __device__ bool whole_pairs() const { return aligned && segment == static_cast<int>(kBlock) && count % 2 == 0; }
};

// A lane's eight numbers, or fewer. A cell beyond the last block has none.
struct ListTile {
  int block, lane;
  int size = 0, n = 0;  // numbers of the block and of the lane
  int64_t begin;        // the block's first number
  bool whole;           // all eight are there and can be loaded at once

  __device__ ListTile(const Blocks& blocks, int index, int lane_of_block) : block(index), lane(lane_of_block) {
    int segment = index, within = 0;
    if (blocks.per_segment > 1) {
      segment = index / blocks.per_segment;
      within = (index - segment * blocks.per_segment) * static_cast<int>(kBlock);
    }
    begin = static_cast<int64_t>(segment) * blocks.segment + within;
    if (index < blocks.count) size = min(blocks.segment - within, static_cast<int>(kBlock));
    n = min(max(size - lane * kGroup, 0), kGroup);
    whole = blocks.aligned && n == kGroup;
  }
  // Where the lane's numbers are in an array that has kBytes for each; and its block's scale among others.
  template <int kBytes>
  __device__ uint8_t* in(void* array) const {
    return static_cast<uint8_t*>(array) + (begin + lane * kGroup) * kBytes;
  }
  __device__ Bf16* scale_in(Bf16* scales) const { return scales + block; }
};

// The same where all blocks are whole and aligned: an address is then one instruction.
struct WholeListTile {
  static constexpr int n = kGroup;
  static constexpr bool whole = true;
  int block, lane;

  template <int kBytes>
  __device__ uint8_t* in(void* array) const {
    struct Eight {
      uint8_t bytes[kGroup * kBytes];
    };
    return static_cast<Eight*>(array)[static_cast<uint32_t>(block * kLanes + lane)].bytes;
  }
  __device__ Bf16* scale_in(Bf16* scales) const { return scales + static_cast<uint32_t>(block); }
};

// Codes and scales of a tensor whose numbers take whole bytes.
struct QuantPlanes {
  uint8_t* codes = nullptr;
  Bf16* scales = nullptr;

  QuantPlanes() = default;
  explicit QuantPlanes(const codec::Quantized& q)
      : codes(q.codes.raw()), scales(q.scales ? static_cast<Bf16*>(q.scales.data) : nullptr) {}
  bool aligned() const { return reinterpret_cast<uintptr_t>(codes) % 16 == 0; }
};

// Where a part of a tensor lies in the whole one, as codec::GlobalOffset says, with rows and blocks counted together.
struct WholeBlocks {
  int begin[codec::GlobalOffset::kRuns] = {};  // the part's block at which a run of rows begins
  int shift[codec::GlobalOffset::kRuns] = {};  // what is added to get blocks of the whole
  codec::cuda::FastDivmod per_row;             // blocks of the part
  int skipped = 0;                             // of the whole's row, beside the part's
  bool in_sequence = true;                     // one run of whole rows

  WholeBlocks() = default;
  explicit WholeBlocks(const codec::Quantized& q, const codec::GlobalOffset& global_offset) {
    const int64_t own = q.row.blocks(), of_whole = global_offset.blocks_per_row ? global_offset.blocks_per_row : own;
    per_row = codec::cuda::FastDivmod(static_cast<uint32_t>(own));
    skipped = static_cast<int>(of_whole - own);
    for (int i = 0; i < codec::GlobalOffset::kRuns; ++i) {
      const bool used = global_offset.begin[i] < global_offset.first_row + q.rows;
      begin[i] = used ? static_cast<int>((global_offset.begin[i] - global_offset.first_row) * own)
                      : std::numeric_limits<int>::max();
      shift[i] =
          static_cast<int>((global_offset.first_row + global_offset.shift[i]) * of_whole + global_offset.first_block);
      in_sequence &= skipped == 0 && (i == 0 || !used);
    }
  }
  __device__ int of(int block) const {
    if (in_sequence) return block + shift[0];
    int add = shift[0];
#pragma unroll
    for (int i = 1; i < codec::GlobalOffset::kRuns; ++i)
      if (block >= begin[i]) add = shift[i];
    return block + add + static_cast<int>(per_row.divide(static_cast<uint32_t>(block))) * skipped;
  }
};

// x -> codes and scale of the cell's block. Called by whole warps.
template <class F, class C, class Rounded>
__device__ void encode(const QuantPlanes& planes, const C& cell, const FloatVec8& x, const Rounded& rounding) {
  uint8_t* to = cell.template in<F::kBits / 8>(planes.codes);
  if constexpr (F::kScaled) {
    static_assert(F::kBits == 8);
    const float amax = codec::cuda::block_amax(x);
    const Bf16 scale = codec::group_scale<F>(amax);
    codec::Packed codes = codec::encode_group<F>(x, codec::group_reciprocal<F>(scale), rounding);
    if (!codec::has_codes(amax)) codes = {};
    if (cell.whole)
      *reinterpret_cast<uint2*>(to) = make_uint2(codes.low, codes.high);
    else
      codec::cuda::store_bytes(to, cell.n, uint64_t{codes.high} << 32 | codes.low);
    if (cell.lane == 0 && cell.n > 0) *cell.scale_in(planes.scales) = scale;
  } else {
    static_assert(F::kBits == 32, "plain moments are fp32, which are stored as they are");
    codec::cuda::store8(reinterpret_cast<float*>(to), cell.n, x);
  }
}

// --- numbers as they are stored --------------------------------------------------------------------------------------

// Eight numbers of kBytes each as they lie in memory. Loading is apart from decoding, so that all loads are on their
// way before arithmetic waits for the first. kWhole: there are eight, at an aligned address; otherwise n.
template <int kBytes>
struct Raw {
  uint32_t words[2 * kBytes] = {};

  template <bool kWhole>
  __device__ void load(const void* from, int n) {
    if constexpr (!kWhole) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (i < n) words[i / kPerWord] |= uint32_t{static_cast<const Number*>(from)[i]} << shift(i);
    } else if constexpr (kBytes == 1) {
      const uint2 w = *static_cast<const uint2*>(from);
      words[0] = w.x, words[1] = w.y;
    } else {
#pragma unroll
      for (int i = 0; i < kBytes / 2; ++i) {
        const uint4 w = static_cast<const uint4*>(from)[i];
        words[4 * i] = w.x, words[4 * i + 1] = w.y, words[4 * i + 2] = w.z, words[4 * i + 3] = w.w;
      }
    }
  }
  template <bool kWhole>
  __device__ void store(void* to, int n) const {
    if constexpr (!kWhole) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (i < n) static_cast<Number*>(to)[i] = number(i);
    } else if constexpr (kBytes == 1) {
      *static_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else {
#pragma unroll
      for (int i = 0; i < kBytes / 2; ++i)
        static_cast<uint4*>(to)[i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
  }

  using Number = std::conditional_t<kBytes == 1, uint8_t, std::conditional_t<kBytes == 2, uint16_t, uint32_t>>;
  __device__ Number number(int i) const {
    return static_cast<Number>(words[i / kPerWord] >> shift(i));
  }
  __device__ float as_float(int i) const {
    if constexpr (kBytes == 4) return __uint_as_float(words[i]);
    return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);  // bf16
  }

 private:
  static constexpr int kPerWord = 4 / kBytes;
  __device__ static constexpr int shift(int i) {
    return 8 * kBytes * (i % kPerWord);
  }
};

// A lane's codes of a tensor, and their scale.
template <class F>
struct Stored {
  static_assert(F::kBits >= 8);
  Raw<F::kBits / 8> raw;
  Bf16 scale;

  template <bool kWhole, class C>
  __device__ void load(const QuantPlanes& planes, const C& cell) {
    raw.template load<kWhole>(cell.template in<F::kBits / 8>(planes.codes), cell.n);
    if constexpr (F::kScaled)
      if (kWhole || cell.n > 0) scale = *cell.scale_in(planes.scales);
  }
  __device__ codec::Packed codes() const { return {raw.words[0], raw.words[1]}; }
  __device__ void decode(FloatVec8& x) const {
    if constexpr (F::kScaled) {
      codec::decode_group<F>(codes(), to_float(scale), x);
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) x[i] = raw.as_float(i);
    }
  }
  // code · (scale · factor)
  __device__ void decode(FloatVec8& x, float factor) const {
    if constexpr (F::kScaled) {
      codec::decode_group<F>(codes(), to_float(scale) * factor, x);
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) x[i] = raw.as_float(i) * factor;
    }
  }
  // (code · scale) · factor
  __device__ void decode_times(float factor, FloatVec8& x) const {
    if constexpr (F::kScaled) {
      codec::decode_times<F>(codes(), to_float(scale), factor, x);
    } else {
      decode(x, factor);
    }
  }
  // x += the numbers
  __device__ void add_to(FloatVec8& x) const {
    if constexpr (F::kScaled) {
      codec::add_group<F>(codes(), to_float(scale), x);
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) x[i] += raw.as_float(i);
    }
  }
};

// Loads a cell the fast way if it can.
template <class T, class From, class C>
__device__ void load(T& stored, const From& from, const C& cell) {
  if (cell.whole) {
    stored.template load<true>(from, cell);
  } else {
    stored.template load<false>(from, cell);
  }
}

// --- gradients that are sums -----------------------------------------------------------------------------------------

// The pieces of a GradientSum.
struct Pieces {
  QuantPlanes first;
  int count = 1;
  int64_t numbers = 0, blocks = 0;  // from a piece to the next

  Pieces() = default;
  explicit Pieces(const GradientSum& sum)
      : first(sum.first),
        count(sum.pieces),
        numbers(sum.piece_rows * sum.first.row.cols),
        blocks(sum.first.scales ? sum.piece_rows * sum.first.row.blocks() : 0) {}
  // Eight numbers can be loaded at once, of every piece.
  bool aligned() const { return first.aligned() && numbers % 16 == 0; }
  template <class F>
  __device__ QuantPlanes piece(int j) const {
    QuantPlanes planes = first;
    planes.codes += j * numbers * (F::kBits / 8);
    planes.scales += j * blocks;
    return planes;
  }
};

// g holds the first piece; adds the others.
template <class F, class C>
__device__ void add_pieces(const Pieces& pieces, const C& cell, FloatVec8& g) {
  constexpr int kAtOnce = F::kBits == 8 ? 4 : 2;  // whose loads are on their way before the first is added
#pragma unroll 1
  for (int first = 1; first < pieces.count; first += kAtOnce) {
    Stored<F> stored[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k < pieces.count) load(stored[k], pieces.piece<F>(first + k), cell);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k >= pieces.count) break;
      stored[k].add_to(g);
    }
  }
}

// Calls fn.operator()<F, kSum>() with a format that main gradients can have, and whether they have several pieces.
template <class Fn>
void dispatch_gradient(codec::Codec codec, bool sum, Fn&& fn) {
  codec::dispatch(codec, [&]<class F>() {
    using namespace codec;
    if constexpr (std::is_same_v<F, Fp32> || std::is_same_v<F, Bfloat16> || std::is_same_v<F, Fp8> ||
                  std::is_same_v<F, Int8>) {
      sum ? fn.template operator()<F, true>() : fn.template operator()<F, false>();
    } else {
      fail("a GPU holds main gradients in fp32, bf16, fp8 or int8, not in {}", name_of(F::kCodec));
    }
  });
}

}  // namespace agoq::ops::cuda
