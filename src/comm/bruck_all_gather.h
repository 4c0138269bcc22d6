// Bruck's all-gather (Bruck, Ho, Kipnis, Upfal, Weathersby 1997) between hosts: everybody's bytes on every rank, in
// ⌈log2 W⌉ rounds of one message each, for any W. Each rank to all others would be W - 1 messages.
//
// It is for what is small. A rank passes on what others sent it, so bytes wait for the rounds before theirs.
#pragma once

#include <span>

#include "comm/gpu_link.h"

namespace agoq::comm {

// Of all ranks together. Up to here messages cost more than their bytes, and their number is kept low instead.
inline constexpr size_t kMostBytesOfSmall = size_t{1} << 20;

// parts[i]: the bytes of rank i of the group, as many on every rank. `rank`'s own are filled in, the others come.
// Of equal parts a rank sends W - 1, as if it sent its own to all others.
void bruck_all_gather(const HostLink& link, int rank, std::span<const std::span<uint8_t>> parts);

}  // namespace agoq::comm
