#include "comm/launch/acceptor.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace agoq::comm {
namespace {

constexpr std::chrono::milliseconds kPause{100};

std::string_view view_of(const ServerHello& answer, size_t bytes) {
  return {reinterpret_cast<const char*>(&answer), bytes};
}

}  // namespace

Acceptor::Acceptor(std::vector<FileDescriptor> listeners, AcceptorOptions options)
    : listeners_(std::move(listeners)), options_(std::move(options)) {}

std::string Acceptor::turned_away() const {
  if (strangers_ == 0) return "";
  return fmt::format("{} that did not show this job's secret {} closed, the last from {}",
                     strangers_ == 1 ? "a connection" : fmt::format("{} connections", strangers_),
                     strangers_ == 1 ? "was" : "were", last_stranger_);
}

void Acceptor::drop(size_t i) {
  if (pending_[i].stage <= Stage::Proof) {
    ++strangers_;
    last_stranger_ = std::move(pending_[i].address);
  }
  pending_.erase(pending_.begin() + static_cast<ptrdiff_t>(i));
}

void Acceptor::accept(const FileDescriptor& listener) {
  std::string address;
  FileDescriptor socket = accept_from(listener, address);
  if (!socket.valid()) {
    const bool exhausted = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
    if (exhausted && !pending_.empty())
      drop(0);
    else if (exhausted)
      accepts_again_ = Deadline::clock::now() + kPause;  // the listener stays readable: do not spin
    return;
  }
  if (pending_.size() >= options_.strangers + static_cast<size_t>(options_.world)) drop(0);
  pending_.push_back({std::move(socket), std::move(address), Deadline::clock::now() + options_.handshake_timeout});
}

// Milliseconds until something has to be done although nothing arrives.
int Acceptor::poll_timeout(Deadline deadline) const {
  if (!pending_.empty()) deadline = std::min(deadline, pending_.front().deadline);
  if (accepts_again_ > Deadline::clock::now()) deadline = std::min(deadline, accepts_again_);
  return milliseconds_to(deadline);
}

// After the client's hello. False: the connection is dropped.
bool Acceptor::send_server_hello(PendingConnection& connection) {
  std::memcpy(&connection.hello, connection.received.data(), sizeof connection.hello);
  if (!is_client_hello(connection.hello)) return false;
  ServerHello answer;
  if (connection.hello.head.protocol != kProtocol) {
    send_at_once(connection.socket, view_of(answer, sizeof answer.head));  // tells our version
    return false;
  }
  if (connection.hello.claim.to != static_cast<uint32_t>(options_.rank)) return false;
  answer.nonce = connection.nonce = random_digest();
  answer.proof = server_proof(options_.credentials, connection.hello, answer.nonce);
  return send_at_once(connection.socket, view_of(answer, sizeof answer));
}

// After the client's proof. True: it was right, and the client has been told. False: the connection is dropped.
bool Acceptor::check_proof(PendingConnection& connection) {
  Proof proof;
  std::memcpy(&proof, connection.received.data(), sizeof proof);
  return same(proof, client_proof(options_.credentials, connection.hello, connection.nonce)) &&
         send_at_once(connection.socket, kConfirmation);
}

// After all bytes of a stage.
Acceptor::StageResult Acceptor::finish_stage(PendingConnection& connection) {
  const auto expect = [&](Stage stage, size_t bytes) {
    connection.stage = stage;
    connection.expected = bytes;
    connection.received.clear();
    return StageResult::Pending;
  };
  switch (connection.stage) {
    case Stage::ClientHello:
      return send_server_hello(connection) ? expect(Stage::Proof, sizeof(Proof)) : StageResult::Rejected;
    case Stage::Proof:
      if (!check_proof(connection)) return StageResult::Rejected;
      if (options_.longest_message == 0) return StageResult::Accepted;
      return expect(Stage::Length, sizeof(uint32_t));
    case Stage::Length: {
      uint32_t length = 0;
      std::memcpy(&length, connection.received.data(), sizeof length);
      if (length == 0 || length > options_.longest_message) return StageResult::Rejected;
      return expect(Stage::Message, length);
    }
    case Stage::Message:
      return StageResult::Accepted;
  }
  return StageResult::Rejected;
}

Acceptor::StageResult Acceptor::read(PendingConnection& connection) {
  if (!read_some(connection.socket, connection.received, connection.expected - connection.received.size()))
    return StageResult::Rejected;
  return connection.received.size() < connection.expected ? StageResult::Pending : finish_stage(connection);
}

// The pending connections come first in `polls`. Reads from those that have sent something, drops those that failed or
// took too long, and returns the first that is accepted. What has arrived is read even after the deadline: this process
// may have been stopped meanwhile.
std::optional<Acceptor::AcceptedPeer> Acceptor::read_from(const std::vector<pollfd>& polls) {
  const Deadline now = Deadline::clock::now();
  for (size_t i = pending_.size(); i-- > 0;) {
    PendingConnection& connection = pending_[i];
    const StageResult progress = polls[i].revents != 0 ? read(connection) : StageResult::Pending;
    if (progress == StageResult::Accepted) {
      AcceptedPeer peer{std::move(connection.socket), connection.hello.claim, ""};
      if (connection.stage == Stage::Message) peer.message = std::move(connection.received);
      pending_.erase(pending_.begin() + static_cast<ptrdiff_t>(i));
      return peer;
    }
    if (progress == StageResult::Rejected || connection.deadline <= now) drop(i);
  }
  return std::nullopt;
}

std::optional<Acceptor::AcceptedPeer> Acceptor::next(Deadline deadline) {
  while (Deadline::clock::now() < deadline) {
    std::vector<pollfd> polls;
    for (const PendingConnection& connection : pending_) polls.push_back({connection.socket.get(), POLLIN, 0});
    const size_t connections = polls.size();
    if (accepts_again_ <= Deadline::clock::now())
      for (const FileDescriptor& listener : listeners_) polls.push_back({listener.get(), POLLIN, 0});
    if (::poll(polls.data(), polls.size(), poll_timeout(deadline)) < 0) continue;  // EINTR
    if (std::optional<AcceptedPeer> peer = read_from(polls)) return peer;
    for (size_t i = connections; i < polls.size(); ++i)
      if (polls[i].revents != 0) accept(listeners_[i - connections]);
  }
  return std::nullopt;
}

}  // namespace agoq::comm
