// Which build of the program runs.
#pragma once

#include <string>

namespace agoq {

// The hash that the linker has taken of all code and data of this program (GNU build id), in hexadecimal digits: equal
// sources, compilers and flags give the same one, at any time and place. "unknown" if the linker has written none.
std::string build_id();

}  // namespace agoq
