#include "comm/sockets.h"

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

constexpr std::string_view kMagic = "AGOQ/1 ";
constexpr size_t kHead = kMagic.size() + sizeof(uint32_t);  // then as many bytes of JSON
constexpr size_t kLongest = size_t{16} << 20;
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

int milliseconds_to(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Deadline::clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, INT_MAX));
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

// -1: not ours; 0: not yet whole; else the bytes that the message takes.
ptrdiff_t message_bytes(std::string_view said) {
  if (said.substr(0, kMagic.size()) != kMagic.substr(0, said.size())) return -1;
  if (said.size() < kHead) return 0;
  uint32_t size = 0;
  std::memcpy(&size, said.data() + kMagic.size(), sizeof size);
  if (size > kLongest) return -1;
  return said.size() < kHead + size ? 0 : static_cast<ptrdiff_t>(kHead + size);
}

// Appends what has come; false once the peer has closed.
bool read_some(const FileDescriptor& socket, std::string& said, size_t limit) {
  std::array<char, 4096> bytes{};
  const ssize_t count = ::recv(socket.get(), bytes.data(), std::min(limit, bytes.size()), 0);
  if (count > 0) said.append(bytes.data(), static_cast<size_t>(count));
  return count > 0 || (count < 0 && would_block());
}

// Not a byte more than the message: what follows may be another's.
size_t lacking(const std::string& said) {
  if (message_bytes(said) < 0) return 0;
  if (said.size() < kHead) return kHead - said.size();
  uint32_t size = 0;
  std::memcpy(&size, said.data() + kMagic.size(), sizeof size);
  return kHead + size - said.size();
}

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace

FileDescriptor listen_tcp(int port, bool loopback_only) {
  if (!loopback_only) {
    FileDescriptor socket = new_socket(AF_INET6);
    set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
    set_option(socket, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(static_cast<uint16_t>(port));
    address.sin6_addr = in6addr_any;
    if (listen_at(socket, &address, sizeof address)) return socket;
  }
  FileDescriptor socket = new_socket(AF_INET);  // also where there is no IPv6
  set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(loopback_only ? INADDR_LOOPBACK : INADDR_ANY);
  const bool listens = listen_at(socket, &address, sizeof address);
  require(listens, "cannot listen on port {}: {}; AGOQ_MASTER_PORT names another, the same for all ranks", port,
          std::strerror(errno));
  return socket;
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

FileDescriptor connect_tcp(const std::string& host, int port, Deadline deadline, std::string& error) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int result = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, &::freeaddrinfo);
  if (result != 0) error = ::gai_strerror(result);
  const bool only = result != 0 || found->ai_next == nullptr;
  for (const addrinfo* at = found; result == 0 && at != nullptr; at = at->ai_next) {
    FileDescriptor socket = new_socket(at->ai_family);
    const Deadline patience = only ? deadline : std::min(deadline, Deadline::clock::now() + kForAddress);
    if (connect_by(socket, at->ai_addr, at->ai_addrlen, patience)) {
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
  std::array<char, NI_MAXHOST> host{};
  if (::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
      ::getnameinfo(reinterpret_cast<sockaddr*>(&address), size, host.data(), host.size(), nullptr, 0,
                    NI_NUMERICHOST) != 0)
    return "";
  constexpr std::string_view kMapped = "::ffff:";  // IPv4 on a socket for both
  const std::string text = host.data();
  return text.compare(0, kMapped.size(), kMapped) == 0 ? text.substr(kMapped.size()) : text;
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.compare(0, 4, "127.") == 0;
}

std::string this_host() {
  std::array<char, PATH_MAX> network{};
  if (::readlink("/proc/self/ns/net", network.data(), network.size() - 1) < 0) network[0] = '\0';
  return first_line("/proc/sys/kernel/random/boot_id") + network.data();
}

bool send_json(const FileDescriptor& socket, const nlohmann::json& message, Deadline deadline) {
  const std::string text = message.dump();
  const auto size = static_cast<uint32_t>(text.size());
  std::string bytes(kMagic);
  bytes.append(reinterpret_cast<const char*>(&size), sizeof size);
  bytes += text;
  for (size_t at = 0; at < bytes.size();) {
    if (!ready(socket, POLLOUT, deadline)) return false;
    const ssize_t count = ::send(socket.get(), bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
    if (count < 0 && !would_block()) return false;
    at += static_cast<size_t>(std::max<ssize_t>(count, 0));
  }
  return true;
}

nlohmann::json receive_json(const FileDescriptor& socket, Deadline deadline) {
  std::string said;
  while (message_bytes(said) == 0)
    if (!ready(socket, POLLIN, deadline) || !read_some(socket, said, lacking(said))) return nullptr;
  if (message_bytes(said) < 0) return nullptr;
  return nlohmann::json::parse(said.substr(kHead), nullptr, false);
}

void Reception::admit(const FileDescriptor& listener) {
  FileDescriptor socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) return;
  tune(socket, is_local(socket));
  visitors_.push_back({std::move(socket), ""});
}

std::optional<Reception::Guest> Reception::next(Deadline deadline) {
  while (true) {
    std::vector<pollfd> polls;
    for (const FileDescriptor& listener : listeners_) polls.push_back({listener.get(), POLLIN, 0});
    for (const Visitor& visitor : visitors_) polls.push_back({visitor.socket.get(), POLLIN, 0});
    const int result = ::poll(polls.data(), polls.size(), milliseconds_to(deadline));
    if (result < 0 && errno == EINTR) continue;
    if (result <= 0) return std::nullopt;
    for (size_t i = visitors_.size(); i-- > 0;) {
      Visitor& visitor = visitors_[i];
      if (polls[listeners_.size() + i].revents == 0) continue;
      const bool there = read_some(visitor.socket, visitor.said, lacking(visitor.said));
      const ptrdiff_t bytes = message_bytes(visitor.said);
      if (there && bytes == 0) continue;
      Guest guest{std::move(visitor.socket), visitor.said};
      visitors_.erase(visitors_.begin() + static_cast<ptrdiff_t>(i));
      if (bytes > 0) {
        guest.presents.erase(0, kHead);
        return guest;
      }
    }
    for (size_t i = 0; i < listeners_.size(); ++i)
      if (polls[i].revents != 0) admit(listeners_[i]);
  }
}

}  // namespace agoq::comm
