// What the machine has of what AGoQ uses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace agoq::cli {

enum class State : uint8_t {
  Ok,
  Slow,     // works, but slower than this machine could
  Absent,   // and nothing of this build needs it
  Missing,  // something of this build does not work without it
  Unfit     // there, but of a version that this build must not use, or with wrong results
};

struct Finding {
  std::string what;
  std::string found;  // a version, a path, a size
  State state = State::Ok;
  std::string remedy = {};  // the command that mends it
};

std::vector<Finding> examine_machine();

}  // namespace agoq::cli
