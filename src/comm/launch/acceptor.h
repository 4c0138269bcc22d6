// Accepts connections from ranks. A peer has to show that it knows the job's key (comm/launch/handshake.h); every other
// connection is closed without a word. Pending connections are bounded in number, in time and in bytes, so that
// strangers hold up no rank.
#pragma once

#include <poll.h>

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "comm/launch/handshake.h"

namespace agoq::comm {

struct AcceptorOptions {
  Credentials credentials;
  int rank = 0;                // a peer that means another rank is turned away
  int world = 1;               // ranks that may connect at the same time
  size_t longest_message = 0;  // bytes of the message that must follow the handshake; 0: none follows
  // For a whole handshake. If all places are taken, a new connection replaces the oldest pending one: ranks need
  // milliseconds, and connect again.
  std::chrono::milliseconds handshake_timeout = std::chrono::seconds(10);
  size_t strangers = 128;  // beside the ranks of the world
};

class Acceptor {
 public:
  struct AcceptedPeer {
    FileDescriptor socket;
    Claim claim;
    std::string message = {};  // that followed the handshake
  };

  Acceptor(std::vector<FileDescriptor> listeners, AcceptorOptions options);
  std::optional<AcceptedPeer> next(Deadline deadline);  // none: the deadline is over
  // "3 connections that did not show this job's secret were closed, the last from 192.0.2.7"; "" if none was. A rank
  // that has another secret calls again and again, so this is no count of callers.
  std::string turned_away() const;

 private:
  enum class Stage : uint8_t { ClientHello, Proof, Length, Message };
  enum class StageResult : uint8_t { Pending, Rejected, Accepted };
  struct PendingConnection {
    FileDescriptor socket;
    std::string address;
    Deadline deadline;
    Stage stage = Stage::ClientHello;
    size_t expected = sizeof(ClientHello);  // bytes of this stage
    std::string received = {};              // in this stage
    ClientHello hello = {};
    Digest nonce = {};
  };
  void accept(const FileDescriptor& listener);
  int poll_timeout(Deadline deadline) const;
  std::optional<AcceptedPeer> read_from(const std::vector<pollfd>& polls);
  StageResult read(PendingConnection& connection);
  StageResult finish_stage(PendingConnection& connection);
  bool send_server_hello(PendingConnection& connection);
  bool check_proof(PendingConnection& connection);
  void drop(size_t i);

  std::vector<FileDescriptor> listeners_;
  AcceptorOptions options_;
  std::vector<PendingConnection> pending_;  // oldest first
  Deadline accepts_again_{};                // no descriptor was left for a connection
  int strangers_ = 0;                       // closed before they had shown the secret
  std::string last_stranger_;               // where it came from
};

}  // namespace agoq::comm
