#include "comm/transport/mailbox.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/text.h"

namespace agoq::comm {
namespace {

class PendingExchange : public Pending {
 public:
  PendingExchange(Mailbox& mailbox, std::mutex& mutex, std::shared_ptr<Exchange> exchange)
      : mailbox_(mailbox), mutex_(mutex), exchange_(std::move(exchange)) {}
  PendingExchange(const PendingExchange&) = delete;
  PendingExchange& operator=(const PendingExchange&) = delete;
  // Without a wait(): the caller unwinds, and its buffers go.
  ~PendingExchange() override {
    const std::unique_lock lock(mutex_);
    if (exchange_->open > 0) mailbox_.give_up(*exchange_);
  }

  void wait() override {
    std::unique_lock lock(mutex_);
    mailbox_.wait(lock, exchange_);
  }
  bool ready() override {
    const std::unique_lock lock(mutex_);
    return exchange_->open == 0 || !exchange_->error.empty() || !mailbox_.fault().empty();
  }

 private:
  Mailbox& mailbox_;
  std::mutex& mutex_;
  std::shared_ptr<Exchange> exchange_;
};

void add_once(std::vector<int>& ranks, int rank) {
  if (std::find(ranks.begin(), ranks.end(), rank) == ranks.end()) ranks.push_back(rank);
}

}  // namespace

std::string seconds_text(Duration duration) {
  return fmt::format("{:g} s", std::chrono::duration<double>(duration).count());
}

std::string ranks_text(std::span<const int> ranks) {
  return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", "));
}

void check_peers(const Transport& transport, std::span<const Send> sends, std::span<const Receive> receives) {
  const auto check = [&](int peer) {
    require(peer >= 0 && peer < transport.size() && peer != transport.rank(),
            "rank {} of {} cannot exchange messages with rank {}", transport.rank(), transport.size(), peer);
  };
  for (const Send& send : sends) check(send.to);
  for (const Receive& receive : receives) check(receive.from);
}

Exchange::Exchange(uint32_t on, std::span<const Send> sends, std::span<const Receive> receives)
    : channel(on), open(sends.size() + receives.size()), moved(Clock::now()) {
  messages.reserve(open);
  for (const Send& send : sends) messages.push_back({send.to, send.bytes, true});
  for (const Receive& receive : receives) messages.push_back({receive.from, receive.bytes, false});
}

void Exchange::finish(size_t message) {
  messages[message].done = true;
  --open;
}

std::vector<int> Exchange::missing() const {
  std::vector<int> ranks;
  for (const MessageState& message : messages)
    if (!message.done) add_once(ranks, message.peer);
  return ranks;
}

Mailbox::Mailbox(int rank, Duration timeout, MailboxCallbacks callbacks)
    : rank_(rank), timeout_(timeout), callbacks_(std::move(callbacks)) {}

void Mailbox::fail(const std::string& cause) {
  if (!fault_.empty()) return;
  fault_ = cause;
  boxes_.clear();  // nobody's buffer is touched again
  changed_.notify_all();
}

void Mailbox::check() const {
  if (!fault_.empty()) throw PeerError(fault_);
}

void Mailbox::finished(const MessageRef& message) {
  if (!message.exchange) return;
  message.exchange->finish(message.index);
  if (message.exchange->open == 0) changed_.notify_all();
}

// Gives the arrival its buffer, with what it has got so far; or, where the sizes differ, ends the exchange.
void Mailbox::match(const PeerChannel& place, const PostedReceive& posted, IncomingMessage& arrival, int rank) {
  arrival.matched = true;
  arrival.message = posted.message;
  auto* const to = static_cast<uint8_t*>(posted.receive.data);
  const auto& exchange = posted.message.exchange;
  if (exchange && posted.receive.bytes != arrival.bytes) {
    exchange->error = fmt::format("rank {} has sent {} bytes on channel {}, but rank {} expects {} from it",
                                  place.first, arrival.bytes, place.second, rank, posted.receive.bytes);
    arrival.to = nullptr;
  } else {
    if (exchange && arrival.got > 0) std::memcpy(to, arrival.own.get(), arrival.got);
    arrival.to = exchange ? to : nullptr;
  }
  arrival.own.reset();
}

void Mailbox::conclude(IncomingMessage& arrival) {
  if (arrival.message.exchange) arrival.message.exchange->moved = Clock::now();
  if (arrival.whole()) finished(arrival.message);
  if (arrival.message.exchange && !arrival.message.exchange->error.empty()) changed_.notify_all();
}

void Mailbox::post(const MessageRef& message, const Receive& receive) {
  const PeerChannel place{receive.from, message.exchange->channel};
  ChannelQueues& box = boxes_[place];
  const PostedReceive posted{message, receive};
  if (!box.early.empty()) {
    match(place, posted, box.early.front(), rank_);
    conclude(box.early.front());
    box.early.pop_front();
  } else if (box.incoming && !box.incoming->matched) {
    match(place, posted, *box.incoming, rank_);
    conclude(*box.incoming);
  } else {
    box.posted.push_back(posted);
    raise_if_ended(place, box);
  }
}

void Mailbox::begin(int from, uint32_t channel, size_t bytes) {
  const PeerChannel place{from, channel};
  ChannelQueues& box = boxes_[place];
  box.incoming = IncomingMessage{bytes, 0, nullptr, nullptr, false, {}};
  if (box.posted.empty()) {
    box.incoming->own = std::make_unique_for_overwrite<uint8_t[]>(bytes);
    box.incoming->to = box.incoming->own.get();
  } else {
    match(place, box.posted.front(), *box.incoming, rank_);
    box.posted.pop_front();
  }
  advance(from, channel, 0);
}

uint8_t* Mailbox::buffer(int from, uint32_t channel) {
  const IncomingMessage& incoming = *boxes_[{from, channel}].incoming;
  return incoming.to == nullptr ? nullptr : incoming.to + incoming.got;
}

void Mailbox::advance(int from, uint32_t channel, size_t bytes) {
  ChannelQueues& box = boxes_[{from, channel}];
  box.incoming->got += bytes;
  if (box.incoming->matched) conclude(*box.incoming);
  if (!box.incoming->whole()) return;
  if (!box.incoming->matched) box.early.push_back(std::move(*box.incoming));
  box.incoming.reset();
}

void Mailbox::ended(int from) {
  add_once(ended_, from);
  for (const auto& [place, box] : boxes_) {
    raise_if_ended(place, box);
    if (!fault_.empty()) return;
  }
}

void Mailbox::raise_if_ended(const PeerChannel& place, const ChannelQueues& box) {
  const auto& [peer, channel] = place;
  if (std::find(ended_.begin(), ended_.end(), peer) == ended_.end()) return;
  const auto waits = [](const PostedReceive& posted) { return posted.message.exchange != nullptr; };
  const auto first = std::find_if(box.posted.begin(), box.posted.end(), waits);
  if (first == box.posted.end()) return;
  callbacks_.raise(fmt::format("rank {} has ended, but rank {} expects {} bytes from it on channel {}", peer, rank_,
                               first->receive.bytes, channel));
}

std::vector<int> Mailbox::awaited() const {
  std::vector<int> ranks;
  for (const Exchange* exchange : waiting_)
    for (int rank : exchange->missing()) add_once(ranks, rank);
  return ranks;
}

void Mailbox::wait(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Exchange>& exchange) {
  waiting_.push_back(exchange.get());
  const Clock::time_point begin = Clock::now();
  while (exchange->open > 0 && exchange->error.empty() && fault_.empty()) {
    const Clock::time_point deadline = std::max(begin, exchange->moved) + timeout_;
    if (Clock::now() >= deadline)
      callbacks_.raise(explain(*exchange));
    else
      changed_.wait_until(lock, deadline);
  }
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), exchange.get()));
  if (!exchange->error.empty()) throw Error(exchange->error);
  if (exchange->open > 0) check();
}

void Mailbox::give_up(Exchange& exchange) {
  for (auto& [place, box] : boxes_) {
    for (PostedReceive& posted : box.posted)
      if (posted.message.exchange.get() == &exchange) posted = {};
    if (box.incoming && box.incoming->message.exchange.get() == &exchange) {
      box.incoming->to = nullptr;
      box.incoming->message = {};
    }
  }
  callbacks_.keep_sending(exchange);
}

// The ranks that this exchange misses may themselves wait for others: those that wait for nobody are the cause.
std::string Mailbox::explain(const Exchange& exchange) const {
  std::vector<int> reached = exchange.missing(), causes;
  for (size_t i = 0; i < reached.size(); ++i) {  // grows as it goes
    const std::vector<int> next = reached[i] == rank_ ? awaited() : callbacks_.awaited_by(reached[i]);
    if (next.empty()) add_once(causes, reached[i]);
    for (int rank : next) add_once(reached, rank);
  }
  std::vector<std::string> misses;
  for (const Exchange::MessageState& message : exchange.messages)
    if (!message.done)
      misses.push_back(
          fmt::format("{} {} rank {}", human_bytes(message.bytes), message.sent_here ? "to" : "from", message.peer));
  std::sort(causes.begin(), causes.end());
  std::sort(reached.begin(), reached.end());
  return fmt::format("{}: rank {} has waited {} for {} on channel {}",
                     causes.empty() ? fmt::format("{} wait for each other", ranks_text(reached))
                                    : fmt::format("{} {} not come, though alive", ranks_text(causes),
                                                  causes.size() == 1 ? "has" : "have"),
                     rank_, seconds_text(timeout_), join(misses, ", "), exchange.channel);
}

std::unique_ptr<Pending> pending_in(Mailbox& mailbox, std::mutex& mutex, std::shared_ptr<Exchange> exchange) {
  return std::make_unique<PendingExchange>(mailbox, mutex, std::move(exchange));
}

}  // namespace agoq::comm
