// How bytes get from process to process, in host memory. All collectives are made of one call (comm/process_group.h),
// so a transport is small.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/error.h"

namespace agoq::comm {

// Another rank is gone, does not answer, or has given up. The text names the rank and the reason; it is the same on
// every rank.
class PeerError : public Error {
 public:
  using Error::Error;
};

struct Send {
  int to = 0;  // rank in the world
  const void* data = nullptr;
  size_t bytes = 0;
};
struct Receive {
  int from = 0;
  void* data = nullptr;
  size_t bytes = 0;  // exactly as many as were sent; anything else is an error on the receiver
};

// An exchange on its way. Its buffers belong to the transport until wait() has returned.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void wait() = 0;   // throws PeerError
  virtual bool ready() = 0;  // whether wait() would not make the host wait
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Starts all of these at once. Messages between two ranks on one channel arrive in the order in which they were
  // started; channels do not wait for each other, and any thread may start and wait. Sends end without the receiver
  // having asked.
  virtual std::unique_ptr<Pending> start(uint32_t channel, std::span<const Send> sends,
                                         std::span<const Receive> receives) = 0;
  // Throws PeerError if a rank is known to have failed; does not wait. For who waits for ranks on another way than
  // this.
  virtual void check() {}
  // What this rank has sent on a channel, counted where it leaves.
  virtual uint64_t bytes_sent(uint32_t channel) const = 0;
  // This rank gives up: every wait, here and on all other ranks, throws PeerError("rank R: reason") from now on.
  // Nothing happens if another rank was first.
  virtual void abandon(const std::string& reason) = 0;
};

}  // namespace agoq::comm
