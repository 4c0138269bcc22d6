// Buffers of the residual stream and its gradient that come from and go to neighbouring stages of the pipeline.
#pragma once

#include <memory>
#include <vector>

#include "comm/process_group.h"

namespace agoq::parallel {

// Belongs to the transport while it is on its way.
struct PipelineBuffer {
  Tensor x;
  std::unique_ptr<comm::Pending> sent;

  const Tensor& free(const Context& ctx) {
    if (sent) expose(ctx, Exposed::Pipeline, [&] { sent->wait(); });
    sent.reset();
    return x;
  }
  void send(const Context& ctx, const comm::ProcessGroup& group, int peer, const Tensor& part) {
    const comm::Message message{peer, part};
    sent = group.start(ctx, {&message, 1}, {});
  }
};

// What a step computes in, on its way from a stage beside.
struct Incoming {
  PipelineBuffer* to = nullptr;  // null: nothing is expected
  std::unique_ptr<comm::Pending> arrival;
};

// Used in turn, so that one is computed in while others travel.
class PipelineBufferRing {
 public:
  PipelineBuffer& next() { return buffers_[turn_++ % buffers_.size()]; }
  void add(const Tensor& x) { buffers_.push_back({x, nullptr}); }

 private:
  std::vector<PipelineBuffer> buffers_;
  size_t turn_ = 0;
};

}  // namespace agoq::parallel
