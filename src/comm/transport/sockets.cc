#include "comm/transport/sockets.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace agoq::comm {
namespace {

constexpr size_t kLongest = size_t{16} << 20;  // bytes of a JSON message
constexpr int kDeepest = 8;                    // of its nested lists and objects
// For one of a host's several addresses: from here it may be on a network that swallows what is sent there.
constexpr std::chrono::seconds kForAddress{3};
constexpr int kLocalBuffer = 4 << 20;  // bytes; the system's own are too small for local sockets to be fast

FileDescriptor new_socket(int family) {
  return FileDescriptor(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

void set_option(const FileDescriptor& socket, int level, int option, int value) {
  ::setsockopt(socket.get(), level, option, &value, sizeof value);
}

// What a connection can do without, but is faster with.
void tune(const FileDescriptor& socket, bool local) {
  if (!local) return set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);  // TCP sizes its buffers itself
  set_option(socket, SOL_SOCKET, SO_SNDBUF, kLocalBuffer);
  set_option(socket, SOL_SOCKET, SO_RCVBUF, kLocalBuffer);
}

bool is_local(const FileDescriptor& socket) {
  int family = 0;
  socklen_t size = sizeof family;
  ::getsockopt(socket.get(), SOL_SOCKET, SO_DOMAIN, &family, &size);
  return family == AF_UNIX;
}

bool ready(const FileDescriptor& socket, int16_t events, Deadline deadline) {
  pollfd poll{socket.get(), events, 0};
  int result = 0;
  do result = ::poll(&poll, 1, milliseconds_to(deadline));
  while (result < 0 && errno == EINTR);
  return result > 0;
}

bool would_block() {
  return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

std::pair<sockaddr_un, socklen_t> local_address(const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  require(name.size() + 1 < sizeof address.sun_path, "'{}' is too long for the name of a local socket", name);
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return {address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())};
}

bool listen_at(const FileDescriptor& socket, const void* address, socklen_t size) {
  return socket.valid() && ::bind(socket.get(), static_cast<const sockaddr*>(address), size) == 0 &&
         ::listen(socket.get(), SOMAXCONN) == 0;
}

// True also where the connection is only under way (EINPROGRESS) and then succeeds.
bool connect_by(const FileDescriptor& socket, const sockaddr* address, socklen_t size, Deadline deadline) {
  if (!socket.valid()) return false;
  if (::connect(socket.get(), address, size) == 0) return true;
  if (errno != EINPROGRESS) return false;
  if (!ready(socket, POLLOUT, deadline)) {
    errno = ETIMEDOUT;
    return false;
  }
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
  errno = error;
  return error == 0;
}

bool is_localhost(const std::string& host) {
  return host == "localhost" || host == "ip6-localhost";
}

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

// Null, with the reason in `error`, where the name means nothing.
Addresses resolve(const std::string& host, int port, int flags, std::string& error) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int result = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (result != 0) error = ::gai_strerror(result);
  return {result == 0 ? found : nullptr, &::freeaddrinfo};
}

// On one address, given in digits. Invalid, with errno set, if it cannot be.
FileDescriptor listen_on(const std::string& address, int port) {
  std::string ignored;
  const Addresses found = resolve(address, port, AI_NUMERICHOST | AI_NUMERICSERV, ignored);
  errno = EADDRNOTAVAIL;
  if (!found) return {};
  FileDescriptor socket = new_socket(found->ai_family);
  set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
  if (found->ai_family == AF_INET6) set_option(socket, IPPROTO_IPV6, IPV6_V6ONLY, address == "::" ? 0 : 1);
  return listen_at(socket, found->ai_addr, found->ai_addrlen) ? std::move(socket) : FileDescriptor();
}

[[noreturn]] void fail_to_listen(int port) {
  fail("cannot listen on port {}: {}; AGOQ_MASTER_PORT names another, the same for all ranks", port,
       std::strerror(errno));
}

// One listener for each loopback address that this host has. None, with errno set, where one of them has the port
// taken.
std::vector<FileDescriptor> try_loopback(int port, const std::vector<std::string>& addresses) {
  std::vector<FileDescriptor> listeners;
  for (const std::string& address : addresses) {
    FileDescriptor socket = listen_on(address, port);
    if (!socket.valid() && errno == EADDRINUSE) return {};
    if (!socket.valid()) continue;  // IPv4 alone, or IPv6
    if (port == 0) port = port_of(socket);
    listeners.push_back(std::move(socket));
  }
  return listeners;
}

std::vector<FileDescriptor> listen_on_loopback(int port, const std::string& host) {
  std::vector<std::string> addresses = {"127.0.0.1", "::1"};
  if (!is_localhost(host) && std::find(addresses.begin(), addresses.end(), host) == addresses.end())
    addresses.push_back(host);  // 127.0.1.1, which Debian gives a host's own name
  constexpr int kTries = 20;    // the port that the system chooses for one address can be taken on another
  for (int i = 0; i < (port == 0 ? kTries : 1); ++i)
    if (std::vector<FileDescriptor> listeners = try_loopback(port, addresses); !listeners.empty()) return listeners;
  fail_to_listen(port);
}

// "" where the address has none.
std::string digits_of(const sockaddr_storage& address, socklen_t size) {
  std::array<char, NI_MAXHOST> host{};
  if (::getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, host.data(), host.size(), nullptr, 0,
                    NI_NUMERICHOST) != 0)
    return "";
  constexpr std::string_view kMapped = "::ffff:";  // IPv4 on a socket for both
  const std::string text = host.data();
  return text.compare(0, kMapped.size(), kMapped) == 0 ? text.substr(kMapped.size()) : text;
}

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace

std::vector<FileDescriptor> listen_tcp(int port, const std::string& host) {
  if (is_loopback(host)) return listen_on_loopback(port, host);
  std::vector<FileDescriptor> listeners;
  for (const char* any : {"::", "0.0.0.0"}) {  // the second where there is no IPv6
    FileDescriptor socket = listen_on(any, port);
    if (!socket.valid()) continue;
    listeners.push_back(std::move(socket));
    return listeners;
  }
  fail_to_listen(port);
}

int port_of(const FileDescriptor& listener) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  const bool known = ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0;
  require(known, "getsockname: {}", std::strerror(errno));
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

FileDescriptor listen_local(const std::string& name) {
  FileDescriptor socket = new_socket(AF_UNIX);
  const auto [address, size] = local_address(name);
  const bool listens = listen_at(socket, &address, size);
  require(listens, "cannot listen on the local socket '{}': {}", name, std::strerror(errno));
  return socket;
}

FileDescriptor accept_from(const FileDescriptor& listener, std::string& address) {
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  FileDescriptor socket(
      ::accept4(listener.get(), reinterpret_cast<sockaddr*>(&peer), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) return socket;
  tune(socket, is_local(socket));
  address = digits_of(peer, size);
  return socket;
}

FileDescriptor connect_tcp(const std::string& host, int port, Deadline deadline, std::string& error) {
  if (is_localhost(host)) {
    FileDescriptor socket = connect_tcp("127.0.0.1", port, deadline, error);
    if (socket.valid()) return socket;
    std::string of_ipv6;
    return connect_tcp("::1", port, deadline, of_ipv6);
  }
  const Addresses found = resolve(host, port, 0, error);
  const bool only = !found || found->ai_next == nullptr;
  for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next) {
    FileDescriptor socket = new_socket(at->ai_family);
    const Deadline timeouts = only ? deadline : std::min(deadline, Deadline::clock::now() + kForAddress);
    if (connect_by(socket, at->ai_addr, at->ai_addrlen, timeouts)) {
      tune(socket, false);
      return socket;
    }
    error = std::strerror(errno);
  }
  return {};
}

FileDescriptor connect_local(const std::string& name, std::string& error) {
  FileDescriptor socket = new_socket(AF_UNIX);
  const auto [address, size] = local_address(name);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0) {
    tune(socket, true);
    return socket;
  }
  error = std::strerror(errno);
  return {};
}

std::string peer_address(const FileDescriptor& socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  const bool known = ::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0;
  return known ? digits_of(address, size) : "";
}

bool is_loopback(const std::string& host) {
  in_addr v4{};
  in6_addr v6{};
  if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == IN_LOOPBACKNET;
  if (::inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return is_localhost(host);
}

std::string this_host() {
  std::array<char, PATH_MAX> network{};
  if (::readlink("/proc/self/ns/net", network.data(), network.size() - 1) < 0) network[0] = '\0';
  return first_line("/proc/sys/kernel/random/boot_id") + network.data();
}

int milliseconds_to(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Deadline::clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, INT_MAX));
}

bool send_bytes(const FileDescriptor& socket, std::string_view bytes, Deadline deadline) {
  while (!bytes.empty()) {
    if (!ready(socket, POLLOUT, deadline)) return false;
    const ssize_t count = ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count < 0 && !would_block()) return false;
    bytes.remove_prefix(static_cast<size_t>(std::max<ssize_t>(count, 0)));
  }
  return true;
}

bool send_at_once(const FileDescriptor& socket, std::string_view bytes) {
  return ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

bool read_some(const FileDescriptor& socket, std::string& said, size_t limit) {
  std::array<char, 4096> bytes{};
  const ssize_t count = ::recv(socket.get(), bytes.data(), std::min(limit, bytes.size()), 0);
  if (count > 0) said.append(bytes.data(), static_cast<size_t>(count));
  return count > 0 || (count < 0 && would_block());
}

std::string receive_bytes(const FileDescriptor& socket, size_t bytes, Deadline deadline) {
  std::string said;
  while (said.size() < bytes)
    if (!ready(socket, POLLIN, deadline) || !read_some(socket, said, bytes - said.size())) break;
  return said;
}

bool send_json(const FileDescriptor& socket, const nlohmann::json& message, Deadline deadline) {
  // Errors quote paths, which need not be UTF-8.
  const std::string text = message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const auto size = static_cast<uint32_t>(text.size());
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof size);
  return send_bytes(socket, bytes.append(text), deadline);
}

nlohmann::json receive_json(const FileDescriptor& socket, Deadline deadline) {
  uint32_t size = 0;
  const std::string length = receive_bytes(socket, sizeof size, deadline);
  if (length.size() < sizeof size) return nullptr;
  std::memcpy(&size, length.data(), sizeof size);
  if (size > kLongest) return nullptr;
  const std::string text = receive_bytes(socket, size, deadline);
  return text.size() < size ? nullptr : parse_json(text);
}

nlohmann::json parse_json(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') quoted = !quoted;
    if (quoted && c == '\\') ++i;
    if (quoted) continue;
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (depth > kDeepest) return nullptr;
  }
  nlohmann::json parsed = nlohmann::json::parse(text, nullptr, false);
  return parsed.is_discarded() ? nlohmann::json() : parsed;
}

}  // namespace agoq::comm
