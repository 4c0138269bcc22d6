// Ranks as threads of one process, for tests of what they compute together.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "comm/transport/local_transport.h"

namespace agoq::test {

class ThreadWorld {
 public:
  explicit ThreadWorld(int size) : world_(size, std::chrono::seconds(60)) {}

  // body(transport) on every rank; the first error of any is thrown.
  void run(const std::function<void(comm::Transport&)>& body) {
    std::vector<std::string> errors(static_cast<size_t>(world_.size()));
    std::vector<std::thread> threads;
    for (int r = 0; r < world_.size(); ++r)
      threads.emplace_back([&, r] {
        comm::Transport& transport = world_.transport(r);
        try {
          body(transport);
        } catch (const std::exception& e) {
          transport.abandon(e.what());
          errors[static_cast<size_t>(r)] = e.what();
        }
      });
    for (std::thread& thread : threads) thread.join();
    for (const std::string& error : errors) require(error.empty(), "{}", error);
  }

 private:
  comm::LocalWorld world_;
};

}  // namespace agoq::test
