// What a rank waits for, and what came before it was asked for: the matching of messages with receives that all
// transports of our own share. Nothing here locks: every call is made with the transport's mutex held.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/transport/transport.h"

namespace agoq::comm {

using Clock = std::chrono::steady_clock;
using Duration = Clock::duration;

std::string seconds_text(Duration duration);         // "2 s", "0.25 s"
std::string ranks_text(std::span<const int> ranks);  // "rank 3", "ranks 1, 2"

// Throws unless all peers are other ranks of the world.
void check_peers(const Transport& transport, std::span<const Send> sends, std::span<const Receive> receives);

// The messages of one start(), until the last of them is through.
struct Exchange {
  struct MessageState {
    int peer = 0;
    size_t bytes = 0;
    bool sent_here = false;  // else received
    bool done = false;
  };
  Exchange(uint32_t channel, std::span<const Send> sends, std::span<const Receive> receives);
  void finish(size_t message);
  std::vector<int> missing() const;  // ranks whose messages have not come, or who have not taken ours

  uint32_t channel;
  std::vector<MessageState> messages;  // sends, then receives
  size_t open;
  std::string error;        // of this exchange alone: a size that does not match
  Clock::time_point moved;  // when last a byte of it came or went
};

// One message of an exchange, in a queue; null: nobody waits for it any more.
struct MessageRef {
  std::shared_ptr<Exchange> exchange;
  size_t index = 0;
};

class Mailbox {
 public:
  // What a mailbox asks of its transport.
  struct MailboxCallbacks {
    std::function<std::vector<int>(int rank)> awaited_by;  // the ranks that `rank` waits for, as last heard
    std::function<void(const std::string& cause)> raise;   // makes the cause known to all ranks: fail(), here too
    std::function<void(Exchange& exchange)> keep_sending;  // takes a copy of what is not sent yet
  };
  Mailbox(int rank, Duration timeout, MailboxCallbacks callbacks);

  // What keeps exchanges from going on, on all ranks; "": nothing.
  const std::string& fault() const { return fault_; }
  void fail(const std::string& cause);  // the first one counts; whoever waits is woken
  void check() const;                   // throws PeerError if there is a fault

  void post(const MessageRef& message, const Receive& receive);
  void finished(const MessageRef& message);  // wakes who waits for it

  // A message arrives: it begins, its bytes go into buffer() (null: they are thrown away), and are counted.
  void begin(int from, uint32_t channel, size_t bytes);
  uint8_t* buffer(int from, uint32_t channel);
  void advance(int from, uint32_t channel, size_t bytes);
  // No more messages will come from this rank: a fault, if one is waited for.
  void ended(int from);

  std::vector<int> awaited() const;  // ranks for which a thread waits at the moment
  void wait(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Exchange>& exchange);
  void give_up(Exchange& exchange);  // its buffers are not touched again

 private:
  struct PostedReceive {
    MessageRef message;
    Receive receive;
  };
  struct IncomingMessage {
    size_t bytes, got;
    uint8_t* to;                     // null: thrown away
    std::unique_ptr<uint8_t[]> own;  // of a message that came early
    bool matched;
    MessageRef message;
    bool whole() const { return got == bytes; }
  };
  struct ChannelQueues {
    std::deque<PostedReceive> posted;         // receives without a message
    std::deque<IncomingMessage> early;        // whole messages without a receive
    std::optional<IncomingMessage> incoming;  // the one under way
  };
  using PeerChannel = std::pair<int, uint32_t>;  // peer, channel

  static void match(const PeerChannel& place, const PostedReceive& posted, IncomingMessage& arrival, int rank);
  void conclude(IncomingMessage& arrival);
  void raise_if_ended(const PeerChannel& place, const ChannelQueues& box);
  std::string explain(const Exchange& exchange) const;

  int rank_;
  Duration timeout_;
  MailboxCallbacks callbacks_;
  std::string fault_;
  std::map<PeerChannel, ChannelQueues> boxes_;
  std::vector<int> ended_;
  std::vector<const Exchange*> waiting_;
  std::condition_variable changed_;
};

// What start() returns: waits on the mailbox, under the transport's mutex.
std::unique_ptr<Pending> pending_in(Mailbox& mailbox, std::mutex& mutex, std::shared_ptr<Exchange> exchange);

}  // namespace agoq::comm
