// Kernels on memory of several GPUs. Plain structs, no CUDA headers.
#pragma once

#include <cstdint>

#include "comm/limits.h"

struct CUstream_st;

namespace agoq::comm::cuda {

inline constexpr int kMostPeers = kMostDirectRanks - 1;
inline constexpr int kMostTensors = 2;

// All ranks come here before any goes on, and what they have written until then is seen by all. Each has a word for
// every other rank to write its count of barriers to.
struct BarrierArgs {
  int peers = 0;
  uint32_t count = 0;                        // of barriers so far, this one among them
  const uint32_t* arrived[kMostPeers] = {};  // words of this rank: the peers' counts
  uint32_t* told[kMostPeers] = {};           // words of the peers: this rank's count
  // In host memory; not 0: do not wait any more. What follows then meets memory of ranks that have not come, which all
  // are ending.
  const volatile uint32_t* stop = nullptr;
};

// Bytes here and of a peer.
struct BytePair {
  uint8_t* own = nullptr;
  uint8_t* peers = nullptr;
  int64_t bytes = 0;
};
struct AllToAllArgs {
  int peers = 0, tensors = 0;
  BytePair stretches[kMostPeers][kMostTensors] = {};
};
struct AllGatherArgs {
  int peers = 0, tensors = 0;
  const uint8_t* own[kMostTensors] = {};
  int64_t bytes[kMostTensors] = {};
  uint8_t* to[kMostTensors][kMostPeers] = {};
};

// Loads all kernels: later it might wait for one of them.
void load_peer_kernels();
void launch(CUstream_st* stream, const BarrierArgs& barrier);
// Exchanges the bytes here with those there.
void launch(CUstream_st* stream, const AllToAllArgs& swap);
// Copies the own bytes to all peers.
void launch(CUstream_st* stream, const AllGatherArgs& spread);

}  // namespace agoq::comm::cuda
