#include "comm/reception.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace agoq::comm {
namespace {

constexpr std::chrono::milliseconds kPause{100};

std::string_view view_of(const Answer& answer, size_t bytes) {
  return {reinterpret_cast<const char*>(&answer), bytes};
}

}  // namespace

Reception::Reception(std::vector<FileDescriptor> listeners, Rules rules)
    : listeners_(std::move(listeners)), rules_(std::move(rules)) {}

std::string Reception::turned_away() const {
  if (strangers_ == 0) return "";
  return fmt::format("{} that did not show this job's secret {} closed, the last from {}",
                     strangers_ == 1 ? "a connection" : fmt::format("{} connections", strangers_),
                     strangers_ == 1 ? "was" : "were", last_stranger_);
}

void Reception::dismiss(size_t i) {
  if (visitors_[i].stage <= Stage::Proof) {
    ++strangers_;
    last_stranger_ = std::move(visitors_[i].address);
  }
  visitors_.erase(visitors_.begin() + static_cast<ptrdiff_t>(i));
}

void Reception::admit(const FileDescriptor& listener) {
  std::string address;
  FileDescriptor socket = accept_from(listener, address);
  if (!socket.valid()) {
    const bool exhausted = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
    if (exhausted && !visitors_.empty())
      dismiss(0);
    else if (exhausted)
      opens_again_ = Deadline::clock::now() + kPause;  // the listener stays readable: do not spin
    return;
  }
  if (visitors_.size() >= rules_.strangers + static_cast<size_t>(rules_.world)) dismiss(0);
  visitors_.push_back({std::move(socket), std::move(address), Deadline::clock::now() + rules_.visit});
}

// Milliseconds until something has to be done without anybody's word.
int Reception::patience(Deadline deadline) const {
  if (!visitors_.empty()) deadline = std::min(deadline, visitors_.front().leaves);
  if (opens_again_ > Deadline::clock::now()) deadline = std::min(deadline, opens_again_);
  return milliseconds_to(deadline);
}

// The visitor's hello is here. False: he goes.
bool Reception::answer(Visitor& visitor) {
  std::memcpy(&visitor.hello, visitor.said.data(), sizeof visitor.hello);
  if (!is_hello(visitor.hello)) return false;
  Answer answer;
  if (visitor.hello.head.protocol != kProtocol) {
    send_at_once(visitor.socket, view_of(answer, sizeof answer.head));  // tells him our version
    return false;
  }
  if (visitor.hello.claim.to != static_cast<uint32_t>(rules_.rank)) return false;
  answer.nonce = visitor.nonce = random_digest();
  answer.proof = proof_of_door(rules_.credentials, visitor.hello, answer.nonce);
  return send_at_once(visitor.socket, view_of(answer, sizeof answer));
}

// The visitor's proof is here. True: he knows that it was right. False: he goes.
bool Reception::check(Visitor& visitor) {
  Proof proof;
  std::memcpy(&proof, visitor.said.data(), sizeof proof);
  return same(proof, proof_of_caller(rules_.credentials, visitor.hello, visitor.nonce)) &&
         send_at_once(visitor.socket, kConfirmation);
}

// All that is expected in this stage is here.
Reception::Progress Reception::understand(Visitor& visitor) {
  const auto expect = [&](Stage stage, size_t bytes) {
    visitor.stage = stage;
    visitor.expected = bytes;
    visitor.said.clear();
    return Progress::Stays;
  };
  switch (visitor.stage) {
    case Stage::Hello:
      return answer(visitor) ? expect(Stage::Proof, sizeof(Proof)) : Progress::Leaves;
    case Stage::Proof:
      if (!check(visitor)) return Progress::Leaves;
      if (rules_.longest_message == 0) return Progress::IsLetIn;
      return expect(Stage::Length, sizeof(uint32_t));
    case Stage::Length: {
      uint32_t length = 0;
      std::memcpy(&length, visitor.said.data(), sizeof length);
      if (length == 0 || length > rules_.longest_message) return Progress::Leaves;
      return expect(Stage::Message, length);
    }
    case Stage::Message:
      return Progress::IsLetIn;
  }
  return Progress::Leaves;
}

Reception::Progress Reception::listen_to(Visitor& visitor) {
  if (!read_some(visitor.socket, visitor.said, visitor.expected - visitor.said.size())) return Progress::Leaves;
  return visitor.said.size() < visitor.expected ? Progress::Stays : understand(visitor);
}

// Of the visitors of `polls`, which come first in it: hears who speaks, sends away who must go, and returns one who is
// let in. What waits is heard even when the visit is over: this process may have been stopped meanwhile.
std::optional<Reception::Guest> Reception::hear(const std::vector<pollfd>& polls) {
  const Deadline now = Deadline::clock::now();
  for (size_t i = visitors_.size(); i-- > 0;) {
    Visitor& visitor = visitors_[i];
    const Progress progress = polls[i].revents != 0 ? listen_to(visitor) : Progress::Stays;
    if (progress == Progress::IsLetIn) {
      Guest guest{std::move(visitor.socket), visitor.hello.claim, ""};
      if (visitor.stage == Stage::Message) guest.message = std::move(visitor.said);
      visitors_.erase(visitors_.begin() + static_cast<ptrdiff_t>(i));
      return guest;
    }
    if (progress == Progress::Leaves || visitor.leaves <= now) dismiss(i);
  }
  return std::nullopt;
}

std::optional<Reception::Guest> Reception::next(Deadline deadline) {
  while (Deadline::clock::now() < deadline) {
    std::vector<pollfd> polls;
    for (const Visitor& visitor : visitors_) polls.push_back({visitor.socket.get(), POLLIN, 0});
    const size_t visitors = polls.size();
    if (opens_again_ <= Deadline::clock::now())
      for (const FileDescriptor& listener : listeners_) polls.push_back({listener.get(), POLLIN, 0});
    if (::poll(polls.data(), polls.size(), patience(deadline)) < 0) continue;  // EINTR
    if (std::optional<Guest> guest = hear(polls)) return guest;
    for (size_t i = visitors; i < polls.size(); ++i)
      if (polls[i].revents != 0) admit(listeners_[i - visitors]);
  }
  return std::nullopt;
}

}  // namespace agoq::comm
