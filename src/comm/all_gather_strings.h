// Texts of any length between all ranks.
#pragma once

#include <string>
#include <vector>

#include "comm/transport/transport.h"

namespace agoq::comm {

// Everybody's text, in rank order, on every rank. All ranks call it alike.
std::vector<std::string> all_gather_strings(Transport& transport, uint32_t channel, const std::string& mine);

}  // namespace agoq::comm
