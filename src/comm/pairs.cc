#include "comm/pairs.h"

#include <thread>
#include <utility>

#include "base/error.h"
#include "comm/mailbox.h"

namespace agoq::comm {
namespace {

// Calls to one rank: strangers who crowd its door can push a caller out before they are sent away themselves.
constexpr int kCalls = 20;
constexpr std::chrono::milliseconds kBetweenCalls{100};

}  // namespace

Pairs::Pairs(const Launch& launch, const Digest& key, Doors doors, Roster roster, Deadline deadline)
    : launch_(launch),
      credentials_{key, "pair " + roster.token},
      reception_(std::move(doors.listeners), {credentials_, launch.rank, launch.world}),
      roster_(std::move(roster)),
      deadline_(deadline) {
  connections_.resize(static_cast<size_t>(launch.world));
}

std::vector<FileDescriptor> Pairs::connect() {
  for (int other = 0; other < launch_.rank; ++other) call(other);
  for (int expected = launch_.world - 1 - launch_.rank; expected > 0; --expected) answer();
  return std::move(connections_);
}

// Until the deadline: the other answers when it has called the ranks below it.
Greeting Pairs::greet_rank(const FileDescriptor& socket, int other) const {
  const auto number = [](int value) { return static_cast<uint32_t>(value); };
  return greet(socket, credentials_, {number(launch_.world), number(launch_.rank), number(other)}, deadline_);
}

// Invalid where the other rank is not behind its name, as on a machine that was restored from the same snapshot.
FileDescriptor Pairs::call_locally(int other) const {
  std::string ignored;
  if (place(other).host != place(launch_.rank).host) return {};
  FileDescriptor socket = connect_local(place(other).name, ignored);
  return socket.valid() && greet_rank(socket, other) == Greeting::Known ? std::move(socket) : FileDescriptor();
}

FileDescriptor Pairs::call_by_tcp(int other, std::string& error) const {
  const Place& there = place(other);
  for (int calls = 0; calls < kCalls && Deadline::clock::now() < deadline_; ++calls) {
    FileDescriptor socket = connect_tcp(there.address, there.port, deadline_, error);
    if (!socket.valid()) return {};
    const Greeting greeting = greet_rank(socket, other);
    if (greeting == Greeting::Known) return socket;
    error = text_of(greeting);
    if (greeting != Greeting::NoAnswer) return {};
    std::this_thread::sleep_for(kBetweenCalls);
  }
  return {};
}

void Pairs::call(int other) {
  std::string error(text_of(Greeting::NoAnswer));
  FileDescriptor socket = call_locally(other);
  if (!socket.valid()) socket = call_by_tcp(other, error);
  require(socket.valid(),
          "rank {} cannot connect to rank {} at {} port {}: {}; hosts must let each other's connections in, on the "
          "network of rank 0's address (AGOQ_MASTER_ADDR)",
          launch_.rank, other, place(other).address, place(other).port, error);
  connections_[static_cast<size_t>(other)] = std::move(socket);
}

void Pairs::answer() {
  while (true) {
    std::optional<Reception::Guest> guest = reception_.next(deadline_);
    if (!guest) fail_without_guest();
    const size_t from = guest->claim.from;
    if (from <= static_cast<size_t>(launch_.rank) || from >= connections_.size()) continue;
    if (connections_[from].valid()) continue;
    connections_[from] = std::move(guest->socket);
    return;
  }
}

void Pairs::fail_without_guest() const {
  const std::string turned_away = reception_.turned_away();
  fail("{} did not connect to rank {}{}", ranks_text(missing()), launch_.rank,
       turned_away.empty() ? "" : "; " + turned_away);
}

std::vector<int> Pairs::missing() const {
  std::vector<int> ranks;
  for (int other = launch_.rank + 1; other < launch_.world; ++other)
    if (!connections_[static_cast<size_t>(other)].valid()) ranks.push_back(other);
  return ranks;
}

}  // namespace agoq::comm
