// How the ranks of a launch find each other: all go to rank 0, which compares what must agree, tells everyone where the
// others are, and lets nobody start before every pair is connected.
#pragma once

#include <vector>

#include "base/file_descriptor.h"
#include "comm/consistency_check.h"
#include "comm/launch/handshake.h"
#include "comm/launch/keyed_hash.h"
#include "comm/launch/launch.h"
#include "comm/transport/sockets.h"

namespace agoq::comm {

struct RendezvousOptions {
  Deadline::duration timeout;
  Digest key{};               // who does not have it is a stranger, and no part of this
  bool local_sockets = true;  // between ranks of one host
};

// A connected socket for every other rank: a local one where both are on one host and say so, else TCP. What goes
// wrong, also on another rank, is an Error with the same text on all ranks that can still be told.
std::vector<FileDescriptor> meet(const Launch& launch, const ConsistencyCheck& agreement,
                                 const RendezvousOptions& options);

// Whether another job's process, or another build's, holds rank 0's place for good: every call for as long as
// `limit` has met it. A port that is free or silent in between starts the time anew.
class WrongServer {
 public:
  explicit WrongServer(Deadline::duration limit) : limit_(limit) {}
  bool stays(HandshakeResult result, Deadline now);  // after each call

 private:
  Deadline::duration limit_;
  Deadline since_ = Deadline::max();  // max: not met, or no longer
};

}  // namespace agoq::comm
