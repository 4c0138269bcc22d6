// Connects every pair of ranks, once all know where the others are.
#pragma once

#include <string>
#include <vector>

#include "comm/launch/acceptor.h"
#include "comm/launch/launch.h"
#include "comm/launch/roster.h"

namespace agoq::comm {

// Of a pair the higher rank calls, and both show that they have the job's key. By a local socket where the two seem to
// be on one host and the other answers there, else by TCP. Throws with what this rank sees.
class PeerConnector {
 public:
  PeerConnector(const Launch& launch, const Digest& key, Endpoints endpoints, Roster roster, Deadline deadline);
  std::vector<FileDescriptor> connect();  // by rank

 private:
  const PeerAddress& place(int rank) const { return roster_.places[static_cast<size_t>(rank)]; }
  FileDescriptor call_locally(int other) const;
  FileDescriptor call_by_tcp(int other, std::string& error) const;
  HandshakeResult handshake_with(const FileDescriptor& socket, int other) const;
  void call(int other);
  void answer();
  [[noreturn]] void fail_unconnected() const;
  std::vector<int> missing() const;

  const Launch& launch_;
  Credentials credentials_;
  Acceptor acceptor_;
  Roster roster_;
  Deadline deadline_;
  std::vector<FileDescriptor> connections_;
};

}  // namespace agoq::comm
