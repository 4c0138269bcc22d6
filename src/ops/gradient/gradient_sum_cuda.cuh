// How kernels read gradients that are sums.
#pragma once

#include <type_traits>

#include "codec/block_cuda.cuh"
#include "ops/gradient/gradient_sum.h"

namespace agoq::ops::cuda {

// The pieces of a GradientSum whose numbers take whole bytes.
struct Pieces {
  codec::cuda::QuantPtr first;
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
  __device__ codec::cuda::QuantPtr piece(int j) const {
    return first.after(j * numbers * (F::kBits / 8), j * blocks);
  }
};

// sum += pieces [begin, end); piece(j) points to one. kAtOnce have their loads on their way before the first is added.
template <class F, int kAtOnce, class Piece, class P>
__device__ void add_pieces(int begin, int end, const Piece& piece, const P& tile, codec::cuda::FloatVec8& sum) {
#pragma unroll 1
  for (int first = begin; first < end; first += kAtOnce) {
    codec::cuda::Fetched<F> fetched[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k < end) fetched[k] = codec::cuda::fetch<F>(piece(first + k), tile);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k < end) codec::cuda::add_to<F>(fetched[k], sum);
  }
}

// g holds the first piece; adds the others.
template <class F, class P>
__device__ void add_others(const Pieces& pieces, const P& tile, codec::cuda::FloatVec8& g) {
  const auto piece = [&](int j) { return pieces.piece<F>(j); };
  add_pieces<F, F::kBits == 8 ? 4 : 2>(1, pieces.count, piece, tile, g);
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
