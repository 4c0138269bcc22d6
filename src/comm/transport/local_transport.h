// Ranks that are threads of one process: for tests, and to simulate many ranks on one machine.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <vector>

#include "comm/transport/mailbox.h"

namespace agoq::comm {

class LocalTransport;

// Outlives its transports' exchanges. A message is one copy, made by the thread that comes second.
class LocalWorld {
 public:
  explicit LocalWorld(int size, Duration wait_timeout = std::chrono::minutes(10));
  ~LocalWorld();
  LocalWorld(const LocalWorld&) = delete;
  LocalWorld& operator=(const LocalWorld&) = delete;

  int size() const { return static_cast<int>(transports_.size()); }
  Transport& transport(int rank);

 private:
  friend class LocalTransport;
  void raise(const std::string& cause);  // mutex held

  std::mutex mutex_;
  std::vector<std::unique_ptr<LocalTransport>> transports_;
};

}  // namespace agoq::comm
