// What must be the same on all ranks, compared before it can do harm.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "comm/transport/transport.h"

namespace agoq::comm {

struct CheckedItem {
  std::string name, value;  // "config", its text or a hash of it
};
using ConsistencyCheck = std::vector<CheckedItem>;

// Each item in which a rank differs from rank 0, with both values; "" where all agree.
std::string differences(std::span<const ConsistencyCheck> by_rank);

// All ranks call this with items of the same names. If they differ, rank 0 abandons the transport, and
// all of them throw the same PeerError.
void agree(Transport& transport, uint32_t channel, const ConsistencyCheck& items);

}  // namespace agoq::comm
