// Connects every pair of ranks, once all know where the others are.
#pragma once

#include <string>
#include <vector>

#include "comm/launch.h"
#include "comm/reception.h"
#include "comm/roster.h"

namespace agoq::comm {

// Of a pair the higher rank calls, and both show that they have the job's key. By a local socket where the two seem to
// be on one host and the other answers there, else by TCP. Throws with what this rank sees.
class Pairs {
 public:
  Pairs(const Launch& launch, const Digest& key, Doors doors, Roster roster, Deadline deadline);
  std::vector<FileDescriptor> connect();  // by rank

 private:
  const Place& place(int rank) const { return roster_.places[static_cast<size_t>(rank)]; }
  FileDescriptor call_locally(int other) const;
  FileDescriptor call_by_tcp(int other, std::string& error) const;
  Greeting greet_rank(const FileDescriptor& socket, int other) const;
  void call(int other);
  void answer();
  [[noreturn]] void fail_without_guest() const;
  std::vector<int> missing() const;

  const Launch& launch_;
  Credentials credentials_;
  Reception reception_;
  Roster roster_;
  Deadline deadline_;
  std::vector<FileDescriptor> connections_;
};

}  // namespace agoq::comm
