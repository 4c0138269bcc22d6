// What must be the same on all ranks, compared before it can do harm.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "comm/transport.h"

namespace agoq::comm {

struct Agreed {
  std::string name, value;  // "config", its text or a hash of it
};
using Agreement = std::vector<Agreed>;

// Each item in which a rank differs from rank 0, with both values; "" where all agree.
std::string differences(std::span<const Agreement> by_rank);

// All ranks call this with items of the same names. If they differ, rank 0 abandons the transport, and
// all of them throw the same PeerError.
void agree(Transport& transport, uint32_t channel, const Agreement& items);

}  // namespace agoq::comm
