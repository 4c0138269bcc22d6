// The ranks that open a checkpoint together: each compares the checksums of its share, and all take the same one or
// fail alike.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace agoq::train {

struct Readers {
  int rank = 0;
  int ranks = 1;
  // The texts that all ranks give, in rank order. All call it equally often.
  std::function<std::vector<std::string>(const std::string& mine)> gather = [](const std::string& mine) {
    return std::vector<std::string>{mine};
  };
};

}  // namespace agoq::train
