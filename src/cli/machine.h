// What the machine has of what AGoQ uses.
#pragma once

#include <string>
#include <vector>

namespace agoq::cli {

struct Finding {
  std::string what;
  std::string found;  // a version, a path, a size
  bool present = true;
  bool needed = false;      // without it something of this build does not work
  std::string remedy = {};  // the command that gets it
};

std::vector<Finding> examine_machine();

}  // namespace agoq::cli
