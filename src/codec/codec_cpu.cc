#include "codec/codec_cpu.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "codec/dispatch.h"

// Loops run over whole blocks of 128 in plain arrays, which the compiler turns into vector code; a short block is
// padded with zeros. `group` counts groups of 8 as the draws do.
namespace agoq::codec {
namespace {

constexpr int kGroups = kBlock / 8;
static_assert(std::endian::native == std::endian::little, "draws and codes are read as bytes of words");

// 16-bit draws of one block, in the order of its elements.
void draw_block(const RandomKey& key, uint64_t first_group, uint16_t* draws) {
  uint32_t words[kGroups][4];
  for (uint32_t g = 0; g < kGroups; ++g) {
    const Philox4 four = rounding_draws(key, first_group + g);
    for (size_t w = 0; w < 4; ++w) words[g][w] = four[w];
  }
  std::memcpy(draws, words, sizeof words);
}

// The draws of consecutive blocks of one row.
class BlockRng {
 public:
  BlockRng(const Rounding& rounding, const Quantized& q, int64_t row)
      : rounding_(rounding),
        first_(rounding.global_offset.row(row) *
                   (rounding.global_offset.blocks_per_row ? rounding.global_offset.blocks_per_row : q.row.blocks()) +
               rounding.global_offset.first_block) {}
  const uint16_t* of(int64_t block) {
    draw_block(rounding_.key, static_cast<uint64_t>(first_ + block) * kGroups, draws_);
    return draws_;
  }

 private:
  const Rounding& rounding_;
  int64_t first_;
  alignas(64) uint16_t draws_[kBlock];
};

float largest_magnitude(const float* x) {
  uint32_t largest = 0;  // the order of magnitudes is that of their bits, infinities and NaNs on top
  for (int i = 0; i < kBlock; ++i) largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & kAbsMask);
  return std::bit_cast<float>(largest);
}

// codes: 128 bytes -> the planes of a block of n.
template <int kBits>
void pack(const uint8_t* codes, int64_t n, uint8_t* out) {
  if constexpr (kBits == 8) {
    std::memcpy(out, codes, static_cast<size_t>(n));
  } else {
    uint64_t words[kGroups];
    std::memcpy(words, codes, sizeof words);
    uint32_t low[kGroups];
    for (int g = 0; g < kGroups; ++g) low[g] = pack_nibbles(words[g]);
    const auto low_bytes = static_cast<size_t>((n + 1) / 2);
    std::memcpy(out, low, low_bytes);
    if constexpr (kBits == 5) {
      uint8_t top[kGroups];
      for (int g = 0; g < kGroups; ++g) top[g] = pack_tops1(words[g]);
      std::memcpy(out + low_bytes, top, static_cast<size_t>((n + 7) / 8));
    }
    if constexpr (kBits == 6) {
      uint16_t top[kGroups];
      for (int g = 0; g < kGroups; ++g) top[g] = pack_tops2(words[g]);
      std::memcpy(out + low_bytes, top, static_cast<size_t>((n + 3) / 4));
    }
  }
}

template <int kBits>
void unpack(const uint8_t* in, int64_t n, uint8_t* codes) {
  if constexpr (kBits == 8) {
    std::memcpy(codes, in, static_cast<size_t>(n));
  } else {
    uint32_t low[kGroups] = {};
    const auto low_bytes = static_cast<size_t>((n + 1) / 2);
    std::memcpy(low, in, low_bytes);
    uint64_t words[kGroups];
    for (int g = 0; g < kGroups; ++g) words[g] = unpack_nibbles(low[g]);
    if constexpr (kBits == 5) {
      uint8_t top[kGroups] = {};
      std::memcpy(top, in + low_bytes, static_cast<size_t>((n + 7) / 8));
      for (int g = 0; g < kGroups; ++g) words[g] |= unpack_tops1(top[g]);
    }
    if constexpr (kBits == 6) {
      uint16_t top[kGroups] = {};
      std::memcpy(top, in + low_bytes, static_cast<size_t>((n + 3) / 4));
      for (int g = 0; g < kGroups; ++g) words[g] |= unpack_tops2(top[g]);
    }
    std::memcpy(codes, words, sizeof words);
  }
}

// x: 128 numbers, zeros behind n. draws: 128, or null for nearest.
template <class F>
Bf16 encode_scaled(const float* x, int64_t n, const uint16_t* draws, uint8_t* out) {
  const Bf16 scale = scale_of<F>(largest_magnitude(x));
  alignas(64) uint8_t codes[kBlock];
  if (!carries_codes(scale)) {
    std::memset(codes, 0, sizeof codes);
  } else if (draws) {
    const float inv = reciprocal(scale);
    for (int i = 0; i < kBlock; ++i) codes[i] = static_cast<uint8_t>(F::encode(scaled<F>(x[i], inv), draws[i]));
  } else {
    const float inv = reciprocal(scale);
    for (int i = 0; i < kBlock; ++i) codes[i] = static_cast<uint8_t>(F::encode(scaled<F>(x[i], inv)));
  }
  pack<F::kBits>(codes, n, out);
  return scale;
}

// Writes 128 numbers, of which the first n mean something.
template <class F>
void decode_scaled(const uint8_t* in, int64_t n, float scale, float* x) {
  alignas(64) uint8_t codes[kBlock];
  if (n < kBlock) std::memset(codes, 0, sizeof codes);
  unpack<F::kBits>(in, n, codes);
  for (int i = 0; i < kBlock; ++i) x[i] = F::decode(codes[i]) * scale;
}

template <class F>
void encode_plain(const float* x, int64_t n, const uint16_t* draws, uint8_t* out) {
  typename F::Stored stored[kBlock];
  for (int i = 0; i < kBlock; ++i) stored[i] = draws ? F::encode(x[i], draws[i]) : F::encode(x[i]);
  std::memcpy(out, stored, static_cast<size_t>(n) * sizeof(typename F::Stored));
}

template <class F>
void decode_plain(const uint8_t* in, int64_t n, float factor, float* x) {
  typename F::Stored stored[kBlock] = {};
  std::memcpy(stored, in, static_cast<size_t>(n) * sizeof(typename F::Stored));
  for (int i = 0; i < kBlock; ++i) x[i] = F::decode(stored[i]) * factor;
}

// Calls visit(block, size, offset of its codes) for blocks [begin, end) of a row.
template <class F, class Visit>
void for_blocks(const RowBlocks& row, int64_t begin, int64_t end, Visit&& visit) {
  const int64_t per_segment = row.blocks_per_segment();
  const int64_t whole_bytes = block_bytes(F::kCodec, kBlock);
  const int64_t tail = row.segment - (per_segment - 1) * kBlock;  // size of a segment's last block
  const int64_t segment_bytes = (per_segment - 1) * whole_bytes + block_bytes(F::kCodec, tail);
  int64_t within = begin % per_segment;
  int64_t offset = begin / per_segment * segment_bytes + within * whole_bytes;
  for (int64_t b = begin; b < end; ++b) {
    const bool last = ++within == per_segment;
    const int64_t n = last ? tail : kBlock;
    visit(b, n, offset);
    offset += last ? segment_bytes - (per_segment - 1) * whole_bytes : whole_bytes;
    if (last) within = 0;
  }
}

template <class F, class Number>
void encode_blocks(const Quantized& q, int64_t row, int64_t begin, int64_t end, const Number* x,
                   const Rounding& rounding) {
  BlockRng draws(rounding, q, row);
  uint8_t* codes = q.row_codes(row);
  Bf16* scales = F::kScaled ? q.row_scales(row) : nullptr;
  for_blocks<F>(q.row, begin, end, [&](int64_t b, int64_t n, int64_t offset) {
    alignas(64) float padded[kBlock];
    const float* numbers = padded;
    if constexpr (std::is_same_v<Number, float>) {
      if (n == kBlock) numbers = x;
    }
    if (numbers == padded) {
      if (n < kBlock) std::memset(padded, 0, sizeof padded);
      for (int64_t i = 0; i < n; ++i) padded[i] = to_float(x[i]);
    }
    const uint16_t* drawn = rounding.stochastic ? draws.of(b) : nullptr;
    if constexpr (F::kScaled) {
      scales[b] = encode_scaled<F>(numbers, n, drawn, codes + offset);
    } else {
      encode_plain<F>(numbers, n, drawn, codes + offset);
    }
    x += n;
  });
}

template <class F, class Number>
void decode_blocks(const Quantized& q, int64_t row, int64_t begin, int64_t end, Number* x, float factor) {
  const uint8_t* codes = q.row_codes(row);
  const Bf16* scales = F::kScaled ? q.row_scales(row) : nullptr;
  for_blocks<F>(q.row, begin, end, [&](int64_t b, int64_t n, int64_t offset) {
    alignas(64) float padded[kBlock];
    float* numbers = padded;
    if constexpr (std::is_same_v<Number, float>) {
      if (n == kBlock) numbers = x;
    }
    if constexpr (F::kScaled) {
      decode_scaled<F>(codes + offset, n, to_float(scales[b]) * factor, numbers);
    } else {
      decode_plain<F>(codes + offset, n, factor, numbers);
    }
    if (numbers == padded)
      for (int64_t i = 0; i < n; ++i) x[i] = from_float<Number>(padded[i]);
    x += n;
  });
}

// Cuts [rows, cols] into pieces of a row for the threads: visit(row, first block, end).
template <class Visit>
void for_pieces(const Quantized& q, Visit&& visit) {
  constexpr int64_t kPiece = 64;  // blocks
  const int64_t blocks = q.row.blocks();
  const int64_t pieces = (blocks + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < q.rows * pieces; ++i) {
    const int64_t begin = i % pieces * kPiece;
    visit(i / pieces, begin, std::min(begin + kPiece, blocks));
  }
}

}  // namespace

template <class Number>
void encode_blocks_cpu(const Quantized& q, int64_t row, int64_t begin, int64_t end, const Number* x,
                       const Rounding& rounding) {
  dispatch(q.codec, [&]<class F>() { encode_blocks<F>(q, row, begin, end, x, rounding); });
}
template void encode_blocks_cpu(const Quantized&, int64_t, int64_t, int64_t, const float*, const Rounding&);
template void encode_blocks_cpu(const Quantized&, int64_t, int64_t, int64_t, const Bf16*, const Rounding&);

template <class Number>
void decode_blocks_cpu(const Quantized& q, int64_t row, int64_t begin, int64_t end, Number* x, float factor) {
  dispatch(q.codec, [&]<class F>() { decode_blocks<F>(q, row, begin, end, x, factor); });
}
template void decode_blocks_cpu(const Quantized&, int64_t, int64_t, int64_t, float*, float);
template void decode_blocks_cpu(const Quantized&, int64_t, int64_t, int64_t, Bf16*, float);

void encode_cpu(const Tensor& x, const Quantized& out, const Rounding& rounding) {
  for_pieces(out, [&](int64_t row, int64_t begin, int64_t end) {
    const int64_t first = row * out.row.cols + out.row.begin(begin);
    if (x.dtype == DType::F32) {
      encode_blocks_cpu(out, row, begin, end, x.as<float>() + first, rounding);
    } else {
      encode_blocks_cpu(out, row, begin, end, x.as<Bf16>() + first, rounding);
    }
  });
}

void decode_cpu(const Quantized& in, const Tensor& out) {
  for_pieces(in, [&](int64_t row, int64_t begin, int64_t end) {
    const int64_t first = row * in.row.cols + in.row.begin(begin);
    if (out.dtype == DType::F32) {
      decode_blocks_cpu(in, row, begin, end, out.as<float>() + first);
    } else {
      decode_blocks_cpu(in, row, begin, end, out.as<Bf16>() + first);
    }
  });
}

}  // namespace agoq::codec
