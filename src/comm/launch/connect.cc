#include "comm/launch/connect.h"

#include "comm/launch/rendezvous.h"

namespace agoq::comm {

std::unique_ptr<Transport> connect(const Launch& launch, const ConnectOptions& options) {
  auto peers = meet(launch, options.agreement, {options.rendezvous_timeout, options.key.bytes, options.local_sockets});
  return std::make_unique<SocketTransport>(launch.rank, std::move(peers), options.timeouts, options.on_fault);
}

}  // namespace agoq::comm
