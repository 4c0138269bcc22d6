// How many files and sockets this process may have open.
#pragma once

#include <cstdint>

namespace agoq {

// A shell allows 1024 by default, and the hard limit is what the system really allows: where fewer than `wanted` are
// allowed, the limit is raised as far as that. Returns how many are allowed then.
uint64_t allow_descriptors(uint64_t wanted);

}  // namespace agoq
