// How many ranks there can be.
#pragma once

namespace agoq::comm {

// Of a run, and so of any group: nothing but --gpu-transport direct has a lower limit of its own. Tests go up to
// thousands; beyond, memory and file descriptors end first (docs/distributed.md, "How it grows with ranks").
inline constexpr int kMostRanks = 1 << 16;
// Of a group whose GPUs exchange tensors in each other's memory: one machine's, since CUDA's handles go no further, and
// few enough that a kernel is given all their addresses as parameters.
inline constexpr int kMostDirectRanks = 33;

}  // namespace agoq::comm
