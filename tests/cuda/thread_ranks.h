// Ranks as threads of the test, with a GPU object each: on one GPU together, or on one GPU each.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <vector>

#include "comm/process_group.h"
#include "comm/transport/local_transport.h"

namespace agoq::comm::test {

// One rank's side of a test.
struct Rank {
  int rank, size;
  Transport& transport;
  Context& ctx;

  ProcessGroup world(uint32_t channel = 0) const {
    std::vector<int> ranks;
    for (int i = 0; i < size; ++i) ranks.push_back(i);
    return {transport, ranks, channel};
  }
};

// Runs `body` once per rank, each in its thread with its stream and arena. An error in one ends all and fails the test.
inline void run_ranks(int size, bool gpu_each, const std::function<void(Rank&)>& body) {
  LocalWorld world(size, std::chrono::seconds(60));
  const auto run = [&](int rank) {
    Transport& transport = world.transport(rank);
    try {
      Gpu gpu(gpu_each ? rank : 0);
      Arena arena(gpu, size_t{256} << 20);
      Context ctx(arena, Device::Cuda, DType::BF16);
      Rank self{rank, size, transport, ctx};
      body(self);
    } catch (const std::exception& error) {
      transport.abandon(error.what());
      ADD_FAILURE() << "rank " << rank << ": " << error.what();
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back(run, rank);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace agoq::comm::test
