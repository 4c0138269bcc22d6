// What ranks tell each other at the rendezvous: where they can be found, and what must agree.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/file_descriptor.h"
#include "comm/consistency_check.h"

namespace agoq::comm {

// Where a rank can be found. An empty address is that of rank 0, as each rank has reached it.
struct PeerAddress {
  std::string host, address, name;
  int port = 0;
};

// The sockets on which a rank accepts connections.
struct Endpoints {
  Endpoints(int rank, const std::string& master_addr, bool local_sockets);
  PeerAddress place() const;

  std::string name, host;
  std::vector<FileDescriptor> listeners;
};

// Whoever comes to rank 0 says this.
struct Registration {
  PeerAddress place;
  ConsistencyCheck agreement;
};

// What rank 0 tells all once they have come.
struct Roster {
  std::string token;  // of this start: connections between ranks are for it alone
  std::vector<PeerAddress> places;
};

nlohmann::json as_json(const Registration& registration);
nlohmann::json as_json(const Roster& roster);
// None where the message is not one of these.
std::optional<Registration> registration_in(const nlohmann::json& message);
std::optional<Roster> roster_in(const nlohmann::json& message, int world);
// What a message says against a start, or "".
std::string trouble_in(const nlohmann::json& message);

}  // namespace agoq::comm
