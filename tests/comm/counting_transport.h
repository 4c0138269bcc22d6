// A transport that counts the messages of its rank.
#pragma once

#include <atomic>

#include "comm/transport/transport.h"

namespace agoq::comm {

class CountingTransport : public Transport {
 public:
  explicit CountingTransport(Transport& counted) : counted_(counted) {}

  int rank() const override { return counted_.rank(); }
  int size() const override { return counted_.size(); }
  std::unique_ptr<Pending> start(uint32_t channel, std::span<const Send> sends,
                                 std::span<const Receive> receives) override {
    sent_ += static_cast<int>(sends.size());
    received_ += static_cast<int>(receives.size());
    return counted_.start(channel, sends, receives);
  }
  void check() override { counted_.check(); }
  uint64_t bytes_sent(uint32_t channel) const override { return counted_.bytes_sent(channel); }
  void abandon(const std::string& reason) override { counted_.abandon(reason); }

  int sent() const { return sent_; }
  int received() const { return received_; }

 private:
  Transport& counted_;
  std::atomic<int> sent_ = 0, received_ = 0;
};

}  // namespace agoq::comm
