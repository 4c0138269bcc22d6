// Philox4x32-7 (Salmon et al., SC'11): random numbers as a pure function of a key and a counter. No generator state is
// stored anywhere, so draws are the same after a resume and under every mesh.
#pragma once

#include <array>
#include <cmath>
#include <numbers>

#include "base/dtype.h"

namespace agoq {

using Philox4 = std::array<uint32_t, 4>;

// The upper half of a product. A GPU's compiler finds that one multiplication gives both halves.
AGOQ_HD inline uint32_t upper_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
#endif
}

using PhiloxKey = std::array<uint32_t, 2>;

AGOQ_HD inline Philox4 philox_round(const Philox4& counter, const PhiloxKey& key) {
  constexpr uint32_t kA = 0xD2511F53u, kB = 0xCD9E8D57u;
  const uint32_t a = counter[0], b = counter[2];
  return {upper_product(kB, b) ^ counter[1] ^ key[0], kB * b, upper_product(kA, a) ^ counter[3] ^ key[1], kA * a};
}
AGOQ_HD inline PhiloxKey next_key(const PhiloxKey& key) {
  return {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
}

inline constexpr size_t kPhiloxRounds = 7;
AGOQ_HD inline Philox4 philox4x32_7(Philox4 counter, PhiloxKey key) {
  for (size_t round = 0; round < kPhiloxRounds; ++round) {
    counter = philox_round(counter, key);
    key = next_key(key);
  }
  return counter;
}

enum class RngStream : uint32_t {
  Initialization,
  Gradient,
  EmbeddingGradient,
  FirstMoment,
  SecondMoment,  // draws of FirstMoment, exchanged (codec/formats.h)
  DataOrder,
  Sampling,
  WireGradient,    // an fp32 partial sum in the format that it travels in
  ReducedGradient  // a sum over ranks, encoded again
};

// What a draw depends on (design: seed, purpose, step, global micro-batch, logical tensor, index in the unsharded
// tensor).
struct RandomKey {
  uint64_t seed = 0;
  RngStream stream = RngStream::Gradient;
  uint32_t step = 0;
  uint32_t micro_batch = 0;
  uint32_t tensor = 0;  // logical tensor id, below 2^24

  // Eight 16-bit draws for the eight elements of one group; `group` counts groups of 8 in the unsharded tensor.
  AGOQ_HD Philox4 draw(uint64_t group) const { return philox4x32_7(counter(group), first_key()); }
  AGOQ_HD Philox4 counter(uint64_t group) const {
    return {static_cast<uint32_t>(group), (static_cast<uint32_t>(group >> 32) << 24) | tensor, step, micro_batch};
  }
  AGOQ_HD PhiloxKey first_key() const {
    return {static_cast<uint32_t>(seed) ^ (static_cast<uint32_t>(stream) << 24), static_cast<uint32_t>(seed >> 32)};
  }
};

// Draw j (0..7) of a group as an integer in [0, 65536).
AGOQ_HD inline uint32_t draw16(const Philox4& words, int j) {
  return (words[static_cast<size_t>(j >> 1)] >> ((j & 1) * 16)) & 0xffffu;
}

// A number in [0, 1) with 24 random bits, and a standard normal pair (Box-Muller), for initialisation and sampling.
inline float uniform01(uint32_t word) {
  return static_cast<float>(word >> 8) * 0x1p-24f;
}
AGOQ_HD inline std::array<float, 2> normal_pair(uint32_t a, uint32_t b) {
  const double u = (static_cast<double>(a) + 1.0) * 0x1p-32;  // (0, 1], so that the logarithm is finite
  const double radius = std::sqrt(-2.0 * std::log(u));
  const double angle = 2.0 * std::numbers::pi * (static_cast<double>(b) * 0x1p-32);
  return {static_cast<float>(radius * std::cos(angle)), static_cast<float>(radius * std::sin(angle))};
}

}  // namespace agoq
