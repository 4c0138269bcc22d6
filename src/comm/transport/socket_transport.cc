#include "comm/transport/socket_transport.h"

#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <exception>
#include <utility>

namespace agoq::comm {
namespace {

constexpr Duration kLongestBeat = std::chrono::seconds(5);
constexpr Duration kShutdown = std::chrono::seconds(2);  // for peers to take the last words

std::string as_bytes(const std::vector<int>& ranks) {
  return {reinterpret_cast<const char*>(ranks.data()), ranks.size() * sizeof(int)};
}

std::vector<int> as_ranks(const std::string& bytes) {
  std::vector<int> ranks(bytes.size() / sizeof(int));
  if (!ranks.empty()) std::memcpy(ranks.data(), bytes.data(), ranks.size() * sizeof(int));
  return ranks;
}

FileDescriptor checked(int number, const char* call) {
  require(number >= 0, "{}: {}", call, std::strerror(errno));
  return FileDescriptor(number);
}

// A thread that no signal of the process's is given to.
template <class Run>
std::thread quiet_thread(const Run& run) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(run);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace

SocketTransport::SocketTransport(int rank, std::vector<FileDescriptor> peers, Timeouts timeouts, OnFault on_fault)
    : rank_(rank),
      timeouts_(timeouts),
      on_fault_(std::move(on_fault)),
      events_(checked(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
      wake_(checked(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")),
      mailbox_(rank, timeouts.wait,
               {.awaited_by = [this](int other) { return peers_[static_cast<size_t>(other)]->awaits; },
                .raise = [this](const std::string& cause) { raise(cause); },
                .keep_sending =
                    [this](Exchange& exchange) {
                      for_peers([&](Peer& peer, int) { peer.connection.keep_sending(exchange); });
                    }}),
      uncaught_(std::uncaught_exceptions()) {
  watch(rank_, EPOLLIN, EPOLL_CTL_ADD);
  for (size_t i = 0; i < peers.size(); ++i) {
    const int other = static_cast<int>(i);
    peers_.push_back(other == rank ? nullptr : std::make_unique<Peer>(std::move(peers[i]), other));
    if (other != rank) watch(other, EPOLLIN, EPOLL_CTL_ADD);
  }
  thread_ = quiet_thread([this] { run(); });
}

SocketTransport::~SocketTransport() {
  {
    Lock lock(mutex_);
    if (std::uncaught_exceptions() > uncaught_) raise(fmt::format("rank {}: it ends with an exception", rank_));
    for_peers([&](Peer& peer, int other) {
      peer.connection.queue(Notice{FrameKind::Goodbye, ""});
      write_to(peer, other);
    });
    shutdown(lock);
  }
  stop_ = true;
  wake();
  thread_.join();
}

// Closing a socket that has unread bytes throws away what it has not delivered. So the last words are delivered first,
// while the thread goes on reading.
void SocketTransport::shutdown(Lock& lock) {
  const Clock::time_point deadline = Clock::now() + kShutdown;
  const auto delivered = [&] {
    bool all = true;
    for_peers([&](Peer& peer, int) {
      int queued = 0;
      if (peer.connection.open() && !peer.ended)
        all =
            all && peer.connection.idle() && (::ioctl(peer.connection.socket(), SIOCOUTQ, &queued) != 0 || queued == 0);
    });
    return all;
  };
  while (!delivered() && Clock::now() < deadline) {
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    lock.lock();
  }
}

template <class Do>
void SocketTransport::for_peers(const Do& act) {
  for (size_t i = 0; i < peers_.size(); ++i)
    if (peers_[i]) act(*peers_[i], static_cast<int>(i));
}

std::unique_ptr<Pending> SocketTransport::start(uint32_t channel, std::span<const Send> sends,
                                                std::span<const Receive> receives) {
  check_peers(*this, sends, receives);
  const Lock lock(mutex_);
  mailbox_.check();
  auto exchange = std::make_shared<Exchange>(channel, sends, receives);
  size_t index = sends.size();
  for (const Receive& receive : receives) {
    mailbox_.post({exchange, index++}, receive);
    mailbox_.check();
  }
  index = 0;
  for (const Send& send : sends) {
    Peer& peer = *peers_[static_cast<size_t>(send.to)];
    peer.connection.queue(mailbox_, {exchange, index++}, send);
    write_to(peer, send.to);
  }
  return pending_in(mailbox_, mutex_, std::move(exchange));
}

uint64_t SocketTransport::bytes_sent(uint32_t channel) const {
  const Lock lock(mutex_);
  const auto at = traffic_.payload.find(channel);
  return at == traffic_.payload.end() ? 0 : at->second;
}

uint64_t SocketTransport::framing_bytes_sent() const {
  const Lock lock(mutex_);
  return traffic_.framing;
}

void SocketTransport::check() {
  const Lock lock(mutex_);
  mailbox_.check();
}

void SocketTransport::abandon(const std::string& reason) {
  const Lock lock(mutex_);
  raise(fmt::format("rank {}: {}", rank_, reason));
}

void SocketTransport::raise(const std::string& cause) {
  if (!mailbox_.fault().empty()) return;
  mailbox_.fail(cause);
  for_peers([&](Peer& peer, int other) {
    peer.connection.cut_short();
    peer.connection.queue(Notice{FrameKind::Fault, cause});
    write_to(peer, other);
  });
  wake();
}

void SocketTransport::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);  // full: it is awake already
}

// The own rank stands for the descriptor that wakes the thread.
void SocketTransport::watch(int rank, uint32_t events, int operation) {
  epoll_event event{};
  event.events = events;
  event.data.u32 = static_cast<uint32_t>(rank);
  const int socket = rank == rank_ ? wake_.get() : peers_[static_cast<size_t>(rank)]->connection.socket();
  const bool watched = ::epoll_ctl(events_.get(), operation, socket, &event) == 0;
  require(watched, "epoll_ctl: {}", std::strerror(errno));
}

void SocketTransport::write_to(Peer& peer, int rank) {
  peer.connection.write(mailbox_, traffic_);
  const bool wants_to_write = peer.connection.open() && !peer.connection.idle();
  if (wants_to_write == peer.watched_for_writing) return;
  peer.watched_for_writing = wants_to_write;
  watch(rank, wants_to_write ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
}

void SocketTransport::read_from(Peer& peer, int rank) {
  const Connection::Inflow inflow = peer.connection.read(mailbox_);
  if (inflow.any) peer.heard = Clock::now();
  for (const Notice& notice : inflow.notices) note(peer, rank, notice);
  if (!inflow.broken) return;
  watch(rank, 0, EPOLL_CTL_DEL);
  peer.watched_for_writing = false;
  peer.connection.close(mailbox_);
  if (!peer.ended) raise(fmt::format("rank {} is gone: its connection was closed", rank));
}

void SocketTransport::note(Peer& peer, int rank, const Notice& notice) {
  switch (notice.kind) {
    case FrameKind::Heartbeat:
      peer.awaits = as_ranks(notice.text);
      break;
    case FrameKind::Fault:
      raise(notice.text);
      break;
    case FrameKind::Goodbye:
      peer.ended = true;
      mailbox_.ended(rank);
      break;
    case FrameKind::Data:
      break;
  }
}

void SocketTransport::beat() {
  const std::string awaited = as_bytes(mailbox_.awaited());
  for_peers([&](Peer& peer, int other) {
    if (!peer.connection.idle()) return;  // bytes are a sign of life
    peer.connection.queue(Notice{FrameKind::Heartbeat, awaited});
    write_to(peer, other);
  });
}

void SocketTransport::look_for_silence(Clock::time_point now) {
  std::vector<int> silent;
  for_peers([&](Peer& peer, int other) {
    if (!peer.ended && peer.connection.open() && now - peer.heard > timeouts_.silence) silent.push_back(other);
  });
  if (!silent.empty())
    raise(fmt::format("{} {} not answer: no sign of life for {} (stopped, or its host or network is down)",
                      ranks_text(silent), silent.size() == 1 ? "does" : "do", seconds_text(timeouts_.silence)));
}

void SocketTransport::look_after(int other, uint32_t events) {
  if (other == rank_) {
    uint64_t times = 0;
    [[maybe_unused]] const ssize_t read = ::read(wake_.get(), &times, sizeof times);
    return;
  }
  Peer& peer = *peers_[static_cast<size_t>(other)];
  if ((events & ~static_cast<uint32_t>(EPOLLOUT)) != 0) read_from(peer, other);
  if (peer.connection.open()) write_to(peer, other);
}

void SocketTransport::keep_time() {
  const Clock::time_point now = Clock::now();
  if (now < next_beat_) return;
  // Late by this much, this process itself was stopped, and what the others have said is not yet read.
  if (now - next_beat_ > timeouts_.silence / 2) for_peers([&](Peer& peer, int) { peer.heard = now; });
  look_for_silence(now);
  beat();
  next_beat_ = now + std::min({kLongestBeat, timeouts_.silence / 4, timeouts_.wait / 4});
}

void SocketTransport::turn() {
  std::array<epoll_event, 64> events{};
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(next_beat_ - Clock::now()).count();
  const int count =
      ::epoll_wait(events_.get(), events.data(), events.size(), static_cast<int>(std::max<int64_t>(left, 0)));
  const Lock lock(mutex_);
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    look_after(static_cast<int>(event.data.u32), event.events);
  }
  keep_time();
}

void SocketTransport::run() {
  bool told = false;
  while (!stop_) {
    std::string cause;
    try {
      turn();
      const Lock lock(mutex_);
      cause = mailbox_.fault();
    } catch (const std::exception& e) {  // out of memory for a message that nobody asks for, say
      cause = fmt::format("rank {}: {}", rank_, e.what());
      const Lock lock(mutex_);
      raise(cause);
    }
    if (cause.empty() || told) continue;
    told = true;
    if (on_fault_) on_fault_(cause);
  }
}

}  // namespace agoq::comm
