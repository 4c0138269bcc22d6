// Exchanges on a stream beside the compute stream, and whether they end.
#pragma once

#include <deque>
#include <memory>

#include "base/polling.h"
#include "comm/transport/transport.h"
#include "device/cuda.h"
#include "device/side_stream.h"

namespace agoq::comm {

class SideExchanges {
 public:
  // A context whose work goes beside that of `ctx`, behind what that was given until now.
  Context begin(const Context& ctx) { return side_.behind(ctx); }
  // An exchange that ends where `beside` is now; wait() makes the stream of `ctx` wait for it, and not the host.
  std::unique_ptr<Pending> end(const Context& ctx, const Context& beside) {
    forget_finished();
    if (unfinished_.empty()) progress_ = Clock::now();
    unfinished_.push_back(std::make_shared<agoq::cuda::Event>());
    unfinished_.back()->record(beside.stream());
    return std::make_unique<SideExchange>(ctx.stream(), unfinished_.back());
  }
  // PeerError if none has ended for so long, although some are under way.
  void require_progress(std::chrono::seconds timeout, int ranks) {
    forget_finished();
    if (!unfinished_.empty() && Clock::now() - progress_ > timeout)
      throw PeerError(
          fmt::format("an exchange between {} ranks has not ended within {} s: one of them hangs; see their logs",
                      ranks, timeout.count()));
  }

 private:
  using Clock = Polling::Clock;

  class SideExchange : public Pending {
   public:
    SideExchange(cudaStream_t stream, std::shared_ptr<agoq::cuda::Event> end) : stream_(stream), end_(std::move(end)) {}
    void wait() override { end_->hold(stream_); }
    bool ready() override { return true; }  // the stream waits

   private:
    cudaStream_t stream_;  // of who waits
    std::shared_ptr<agoq::cuda::Event> end_;
  };

  void forget_finished() {
    while (!unfinished_.empty() && unfinished_.front()->reached()) {
      unfinished_.pop_front();
      progress_ = Clock::now();
    }
  }

  SideStream side_;
  std::deque<std::shared_ptr<agoq::cuda::Event>> unfinished_;  // ends of exchanges, in the order of the stream
  Clock::time_point progress_;                                 // when one was last seen to end, or the first to begin
};

}  // namespace agoq::comm
