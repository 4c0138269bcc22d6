// What POSIX offers for connections between processes, with deadlines, and short messages in JSON: what ranks need
// before they have a transport.
#pragma once

#include <chrono>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_descriptor.h"

namespace agoq::comm {

using Deadline = std::chrono::steady_clock::time_point;

// Where others reach `host`: on all addresses of this machine, IPv6 and IPv4; or, where it is a loopback, on all
// loopback addresses alone, each with a listener of its own. All have the same port. Port 0: any. Throws if the port is
// taken.
std::vector<FileDescriptor> listen_tcp(int port, const std::string& host);
int port_of(const FileDescriptor& listener);
// In the abstract namespace of Linux: the name is no file, and reaches as far as this host's network namespace.
FileDescriptor listen_local(const std::string& name);

// The next connection, and the address that it comes from, as digits, even if the peer is gone by now. Invalid, with
// errno set, if there is none.
FileDescriptor accept_from(const FileDescriptor& listener, std::string& address);

// Invalid, with errno-like text in `error`, where there is no connection by the deadline. Of a host's several addresses
// each is tried, for seconds. "localhost" needs no resolver: it is 127.0.0.1 and ::1.
FileDescriptor connect_tcp(const std::string& host, int port, Deadline deadline, std::string& error);
FileDescriptor connect_local(const std::string& name, std::string& error);

std::string peer_address(const FileDescriptor& socket);  // as digits
bool is_loopback(const std::string& host);               // by its name: "localhost", "127.0.1.1", "::1"
// Ranks with different keys are on different hosts. Those with the same may be on one host or on machines restored from
// one snapshot, so whether local sockets connect them shows when they answer.
std::string this_host();

int milliseconds_to(Deadline deadline);  // for poll(); 0: it is over

// False if the peer is gone or the deadline is over.
bool send_bytes(const FileDescriptor& socket, std::string_view bytes, Deadline deadline);
// False if the socket does not take all of them now: for few bytes on a new connection.
bool send_at_once(const FileDescriptor& socket, std::string_view bytes);
// Fewer if the peer is gone or the deadline is over. Never more: what follows may be another's.
std::string receive_bytes(const FileDescriptor& socket, size_t bytes, Deadline deadline);
// Appends what has come, at most `limit` bytes; false once the peer has closed.
bool read_some(const FileDescriptor& socket, std::string& said, size_t limit);

// A message is its length and a JSON text.
bool send_json(const FileDescriptor& socket, const nlohmann::json& message, Deadline deadline);
// Null if the peer is gone, speaks otherwise, or the deadline is over.
nlohmann::json receive_json(const FileDescriptor& socket, Deadline deadline);
// Null if it is none, or is nested deeper than any message of ours.
nlohmann::json parse_json(std::string_view text);

}  // namespace agoq::comm
