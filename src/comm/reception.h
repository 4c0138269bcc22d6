// The side of the doors: lets in whoever shows that he knows the job's key (comm/handshake.h), and sends everybody else
// away in silence. Visitors are bounded in number, in time and in what they can say, so they hold up nobody.
#pragma once

#include <poll.h>

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "comm/handshake.h"

namespace agoq::comm {

class Reception {
 public:
  struct Guest {
    FileDescriptor socket;
    Claim claim;
    std::string message = {};  // what he said after the handshake
  };
  struct Rules {
    Credentials credentials;
    int rank = 0;                // who calls another is at the wrong door
    int world = 1;               // ranks that may come at the same time
    size_t longest_message = 0;  // bytes of the message that must follow the handshake; 0: none follows
    // For a whole visit. A newcomer who finds all places taken takes that of the visitor who came first: ranks need
    // milliseconds, and call again.
    std::chrono::milliseconds visit = std::chrono::seconds(10);
    size_t strangers = 128;  // beside the ranks of the world
  };

  Reception(std::vector<FileDescriptor> listeners, Rules rules);
  std::optional<Guest> next(Deadline deadline);  // none: the deadline is over
  // "3 connections that did not show this job's secret were closed, the last from 192.0.2.7"; "" if none was. A rank
  // that has another secret calls again and again, so this is no count of callers.
  std::string turned_away() const;

 private:
  enum class Stage : uint8_t { Hello, Proof, Length, Message };
  enum class Progress : uint8_t { Stays, Leaves, IsLetIn };
  struct Visitor {
    FileDescriptor socket;
    std::string address;
    Deadline leaves;
    Stage stage = Stage::Hello;
    size_t expected = sizeof(Hello);  // bytes of this stage
    std::string said = {};            // in this stage
    Hello hello = {};
    Digest nonce = {};
  };
  void admit(const FileDescriptor& listener);
  int patience(Deadline deadline) const;
  std::optional<Guest> hear(const std::vector<pollfd>& polls);
  Progress listen_to(Visitor& visitor);
  Progress understand(Visitor& visitor);
  bool answer(Visitor& visitor);
  bool check(Visitor& visitor);
  void dismiss(size_t i);

  std::vector<FileDescriptor> listeners_;
  Rules rules_;
  std::vector<Visitor> visitors_;  // in the order in which they came
  Deadline opens_again_{};         // no descriptor was left for a visitor
  int strangers_ = 0;              // closed before they had shown the secret
  std::string last_stranger_;      // where it came from
};

}  // namespace agoq::comm
