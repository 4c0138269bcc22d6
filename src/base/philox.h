// Philox4x32-7 (Salmon et al., SC'11): random numbers as a pure function of a key and a counter. No generator state is
// stored anywhere, so draws are the same after a resume and under every mesh.
#pragma once

#include <array>

#include "base/dtype.h"

namespace agoq {

using Philox4 = std::array<uint32_t, 4>;

AGOQ_HD inline Philox4 philox4x32_7(Philox4 counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 7; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

enum class Purpose : uint32_t {
  Initialization,
  Gradient,
  EmbeddingGradient,
  FirstMoment,
  SecondMoment,
  DataOrder,
  Sampling
};

// What a draw depends on (design: seed, purpose, step, global micro-batch, logical tensor, index in the unsharded
// tensor).
struct RandomKey {
  uint64_t seed = 0;
  Purpose purpose = Purpose::Gradient;
  uint32_t step = 0;
  uint32_t micro_batch = 0;
  uint32_t tensor = 0;  // logical tensor id, below 2^24

  // Eight 16-bit draws for the eight elements of one group; `group` counts groups of 8 in the unsharded tensor.
  AGOQ_HD Philox4 draw(uint64_t group) const {
    const Philox4 counter = {static_cast<uint32_t>(group), (static_cast<uint32_t>(group >> 32) << 24) | tensor, step,
                             micro_batch};
    return philox4x32_7(counter, {static_cast<uint32_t>(seed) ^ (static_cast<uint32_t>(purpose) << 24),
                                  static_cast<uint32_t>(seed >> 32)});
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
std::array<float, 2> normal_pair(uint32_t a, uint32_t b);

}  // namespace agoq
