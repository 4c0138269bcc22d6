#include "comm/launch/peer_connector.h"

#include <thread>
#include <utility>

#include "base/error.h"
#include "comm/transport/mailbox.h"

namespace agoq::comm {
namespace {

// Attempts for one rank: many strangers at a time can displace a pending connection before they are dropped themselves.
constexpr int kCalls = 20;
constexpr std::chrono::milliseconds kBetweenCalls{100};

}  // namespace

PeerConnector::PeerConnector(const Launch& launch, const Digest& key, Endpoints endpoints, Roster roster,
                             Deadline deadline)
    : launch_(launch),
      credentials_{key, "pair " + roster.token},
      acceptor_(std::move(endpoints.listeners), {credentials_, launch.rank, launch.world}),
      roster_(std::move(roster)),
      deadline_(deadline) {
  connections_.resize(static_cast<size_t>(launch.world));
}

std::vector<FileDescriptor> PeerConnector::connect() {
  for (int other = 0; other < launch_.rank; ++other) call(other);
  for (int expected = launch_.world - 1 - launch_.rank; expected > 0; --expected) answer();
  return std::move(connections_);
}

// Until the deadline: the other answers when it has called the ranks below it.
HandshakeResult PeerConnector::handshake_with(const FileDescriptor& socket, int other) const {
  const auto number = [](int value) { return static_cast<uint32_t>(value); };
  return shake_hands(socket, credentials_, {number(launch_.world), number(launch_.rank), number(other)}, deadline_);
}

// Invalid where the other rank is not behind its name, as on a machine that was restored from the same snapshot.
FileDescriptor PeerConnector::call_locally(int other) const {
  std::string ignored;
  if (place(other).host != place(launch_.rank).host) return {};
  FileDescriptor socket = connect_local(place(other).name, ignored);
  return socket.valid() && handshake_with(socket, other) == HandshakeResult::Known ? std::move(socket)
                                                                                   : FileDescriptor();
}

FileDescriptor PeerConnector::call_by_tcp(int other, std::string& error) const {
  const PeerAddress& there = place(other);
  for (int calls = 0; calls < kCalls && Deadline::clock::now() < deadline_; ++calls) {
    FileDescriptor socket = connect_tcp(there.address, there.port, deadline_, error);
    if (!socket.valid()) return {};
    const HandshakeResult result = handshake_with(socket, other);
    if (result == HandshakeResult::Known) return socket;
    error = text_of(result);
    if (result != HandshakeResult::NoAnswer) return {};
    std::this_thread::sleep_for(kBetweenCalls);
  }
  return {};
}

void PeerConnector::call(int other) {
  std::string error(text_of(HandshakeResult::NoAnswer));
  FileDescriptor socket = call_locally(other);
  if (!socket.valid()) socket = call_by_tcp(other, error);
  require(socket.valid(),
          "rank {} cannot connect to rank {} at {} port {}: {}; hosts must let each other's connections in, on the "
          "network of rank 0's address (AGOQ_MASTER_ADDR)",
          launch_.rank, other, place(other).address, place(other).port, error);
  connections_[static_cast<size_t>(other)] = std::move(socket);
}

void PeerConnector::answer() {
  while (true) {
    std::optional<Acceptor::AcceptedPeer> peer = acceptor_.next(deadline_);
    if (!peer) fail_unconnected();
    const size_t from = peer->claim.from;
    if (from <= static_cast<size_t>(launch_.rank) || from >= connections_.size()) continue;
    if (connections_[from].valid()) continue;
    connections_[from] = std::move(peer->socket);
    return;
  }
}

void PeerConnector::fail_unconnected() const {
  const std::string turned_away = acceptor_.turned_away();
  fail("{} did not connect to rank {}{}", ranks_text(missing()), launch_.rank,
       turned_away.empty() ? "" : "; " + turned_away);
}

std::vector<int> PeerConnector::missing() const {
  std::vector<int> ranks;
  for (int other = launch_.rank + 1; other < launch_.world; ++other)
    if (!connections_[static_cast<size_t>(other)].valid()) ranks.push_back(other);
  return ranks;
}

}  // namespace agoq::comm
