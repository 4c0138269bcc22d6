// From a launch to a transport: the one call that a program makes.
#pragma once

#include <memory>

#include "comm/consistency_check.h"
#include "comm/launch/job_key.h"
#include "comm/launch/launch.h"
#include "comm/transport/socket_transport.h"

namespace agoq::comm {

struct ConnectOptions {
  JobKey key;                 // by default one that everybody knows: find_job_key()
  bool local_sockets = true;  // between ranks of one host; else TCP there too
  Duration rendezvous_timeout = std::chrono::minutes(5);
  Timeouts timeouts;
  SocketTransport::OnFault on_fault;
  ConsistencyCheck agreement;  // refused where a rank differs; later items by agree()
};

// All ranks of the launch call this, and return together. A world of one needs no network.
std::unique_ptr<Transport> connect(const Launch& launch, const ConnectOptions& options = {});

}  // namespace agoq::comm
