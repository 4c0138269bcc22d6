// What POSIX offers for connections between processes, with deadlines, and short messages in JSON: what ranks need
// before they have a transport.
#pragma once

#include <chrono>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/file_descriptor.h"

namespace agoq::comm {

using Deadline = std::chrono::steady_clock::time_point;

// On all addresses of this host, IPv6 and IPv4, or on 127.0.0.1 alone. Port 0: any. Throws if the port is taken.
FileDescriptor listen_tcp(int port, bool loopback_only);
int port_of(const FileDescriptor& listener);
// In the abstract namespace of Linux: the name is no file, and reaches as far as this host's network namespace.
FileDescriptor listen_local(const std::string& name);

// Invalid, with errno-like text in `error`, where there is no connection by the deadline. Of a host's several addresses
// each is tried, for seconds.
FileDescriptor connect_tcp(const std::string& host, int port, Deadline deadline, std::string& error);
FileDescriptor connect_local(const std::string& name, std::string& error);

std::string peer_address(const FileDescriptor& socket);  // as digits
bool is_loopback(const std::string& host);
std::string this_host();  // a key that ranks have in common if and only if local sockets connect them

// False if the peer is gone or the deadline is over.
bool send_json(const FileDescriptor& socket, const nlohmann::json& message, Deadline deadline);
// Null if the peer is gone, speaks otherwise, or the deadline is over.
nlohmann::json receive_json(const FileDescriptor& socket, Deadline deadline);

// Lets in whoever presents himself with a message of ours; others, such as port scanners, are sent away in silence, and
// hold up nobody.
class Reception {
 public:
  struct Guest {
    FileDescriptor socket;
    std::string presents;  // JSON
  };
  explicit Reception(std::vector<FileDescriptor> listeners) : listeners_(std::move(listeners)) {}
  std::optional<Guest> next(Deadline deadline);  // none: the deadline is over

 private:
  struct Visitor {
    FileDescriptor socket;
    std::string said;
  };
  void admit(const FileDescriptor& listener);
  std::vector<FileDescriptor> listeners_;
  std::vector<Visitor> visitors_;
};

}  // namespace agoq::comm
