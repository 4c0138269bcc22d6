#include "comm/transport/local_transport.h"

#include <cstring>
#include <map>
#include <utility>

namespace agoq::comm {

class LocalTransport : public Transport {
 public:
  LocalTransport(LocalWorld& world, int rank, Duration timeout)
      : world_(world),
        rank_(rank),
        mailbox_(rank, timeout,
                 {.awaited_by = [&world](int other) { return mailbox(world, other).awaited(); },
                  .raise = [&world](const std::string& cause) { world.raise(cause); },
                  .keep_sending = [](Exchange&) {}}) {}  // a send is over when it returns

  int rank() const override { return rank_; }
  int size() const override { return world_.size(); }

  std::unique_ptr<Pending> start(uint32_t channel, std::span<const Send> sends,
                                 std::span<const Receive> receives) override {
    check_peers(*this, sends, receives);
    const std::unique_lock lock(world_.mutex_);
    mailbox_.check();
    auto exchange = std::make_shared<Exchange>(channel, sends, receives);
    size_t index = 0;
    for (const Send& send : sends) {
      deliver(mailbox(world_, send.to), channel, send);
      sent_[channel] += send.bytes;
      exchange->finish(index++);
    }
    for (const Receive& receive : receives) mailbox_.post({exchange, index++}, receive);
    return pending_in(mailbox_, world_.mutex_, std::move(exchange));
  }

  uint64_t bytes_sent(uint32_t channel) const override {
    const std::unique_lock lock(world_.mutex_);
    const auto at = sent_.find(channel);
    return at == sent_.end() ? 0 : at->second;
  }

  void check() override {
    const std::unique_lock lock(world_.mutex_);
    mailbox_.check();
  }

  void abandon(const std::string& reason) override {
    const std::unique_lock lock(world_.mutex_);
    world_.raise(fmt::format("rank {}: {}", rank_, reason));
  }

 private:
  friend class LocalWorld;
  static Mailbox& mailbox(LocalWorld& world, int rank) {
    return world.transports_[static_cast<size_t>(rank)]->mailbox_;
  }

  void deliver(Mailbox& to, uint32_t channel, const Send& send) const {
    to.begin(rank_, channel, send.bytes);
    if (send.bytes == 0) return;
    if (uint8_t* const buffer = to.buffer(rank_, channel)) std::memcpy(buffer, send.data, send.bytes);
    to.advance(rank_, channel, send.bytes);
  }

  LocalWorld& world_;
  int rank_;
  Mailbox mailbox_;
  std::map<uint32_t, uint64_t> sent_;
};

LocalWorld::LocalWorld(int size, Duration wait_timeout) {
  require(size >= 1, "a world of {} ranks has nobody in it", size);
  for (int rank = 0; rank < size; ++rank)
    transports_.push_back(std::make_unique<LocalTransport>(*this, rank, wait_timeout));
}

LocalWorld::~LocalWorld() = default;

Transport& LocalWorld::transport(int rank) {
  return *transports_.at(static_cast<size_t>(rank));
}

void LocalWorld::raise(const std::string& cause) {
  for (const auto& transport : transports_) transport->mailbox_.fail(cause);
}

}  // namespace agoq::comm
