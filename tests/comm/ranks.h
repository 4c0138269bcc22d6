// Runs ranks as threads of this process.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "comm/transport/local_transport.h"

namespace agoq::comm {

// What each rank throws, or "".
inline std::vector<std::string> on_ranks(LocalWorld& world, const std::function<void(Transport&)>& main) {
  std::vector<std::string> texts(static_cast<size_t>(world.size()));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world.size(); ++rank)
    threads.emplace_back([&, rank] {
      try {
        main(world.transport(rank));
      } catch (const std::exception& e) {
        texts[static_cast<size_t>(rank)] = e.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return texts;
}

}  // namespace agoq::comm
