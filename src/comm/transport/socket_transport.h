// Ranks that are processes, each connected with every other by a socket, with one thread per process that moves the
// bytes (comm/transport/connection.h) and watches over the others.
//
// How a rank that fails is found, so that all others end with the same text, which names it:
//   gives up (abandon)          it tells everyone
//   dies                        its connections close without a goodbye
//   is stopped, cut off         nothing is heard of it, not even the heartbeat
//   hangs in its own code       an exchange takes too long; heartbeats tell who waits for whom, so the first cause is
//   found
// Whoever learns of a cause tells all others before anything else, so that they do not take its own end for the cause.
#pragma once

#include <atomic>
#include <thread>

#include "comm/transport/connection.h"

namespace agoq::comm {

struct Timeouts {
  Duration wait = std::chrono::minutes(10);     // for an exchange of which nothing moves
  Duration silence = std::chrono::seconds(60);  // for a sign of life
};

class SocketTransport : public Transport {
 public:
  // Called once, from the transport's thread, with the fault's text: for a program whose own threads are stuck
  // elsewhere.
  using OnFault = std::function<void(const std::string& cause)>;

  // `peers`: a connected stream socket for each rank of the world; none for this rank.
  SocketTransport(int rank, std::vector<FileDescriptor> peers, Timeouts timeouts = {}, OnFault on_fault = {});
  // Says goodbye; or, while an exception unwinds, abandons.
  ~SocketTransport() override;
  SocketTransport(const SocketTransport&) = delete;
  SocketTransport& operator=(const SocketTransport&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(peers_.size()); }
  std::unique_ptr<Pending> start(uint32_t channel, std::span<const Send> sends,
                                 std::span<const Receive> receives) override;
  uint64_t bytes_sent(uint32_t channel) const override;
  uint64_t framing_bytes_sent() const;  // headers and heartbeats
  void check() override;
  void abandon(const std::string& reason) override;

 private:
  struct Peer {
    Peer(FileDescriptor socket, int rank) : connection(std::move(socket), rank) {}
    Connection connection;
    Clock::time_point heard = Clock::now();
    std::vector<int> awaits;  // the ranks it waits for
    bool ended = false;
    bool watched_for_writing = false;
  };
  using Lock = std::unique_lock<std::mutex>;

  void run();
  void turn();
  void look_after(int other, uint32_t events);
  void keep_time();
  void read_from(Peer& peer, int rank);
  void note(Peer& peer, int rank, const Notice& notice);
  void write_to(Peer& peer, int rank);
  void watch(int rank, uint32_t events, int operation);
  void beat();
  void look_for_silence(Clock::time_point now);
  void raise(const std::string& cause);
  void wake();
  void shutdown(Lock& lock);
  template <class Do>
  void for_peers(const Do& act);

  int rank_;
  Timeouts timeouts_;
  OnFault on_fault_;
  FileDescriptor events_, wake_;
  mutable std::mutex mutex_;
  Mailbox mailbox_;
  std::vector<std::unique_ptr<Peer>> peers_;  // by rank; null: this one
  SentBytes traffic_;
  int uncaught_;                                // exceptions under way at the start
  Clock::time_point next_beat_ = Clock::now();  // the thread's own
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace agoq::comm
