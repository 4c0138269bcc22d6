// The GPUs of a group whose memory this one reaches directly: by CUDA's handles between processes, as pointers between
// threads of one.
#pragma once

#include <memory>
#include <span>

#include "comm/process_group.h"
#include "comm/window.h"

namespace agoq::comm {

struct PeerOptions {
  std::chrono::seconds timeout{600};  // how long the host waits for an exchange that does not end
  Transport* transport = nullptr;     // knows whether a rank is gone; may be null
};

class Peers {
 public:
  virtual ~Peers() = default;
  // On all ranks at once. The tensors lie in the context's arena: at most two, of bytes that the ranks divide.
  virtual std::shared_ptr<Window> open(const Context& ctx, const ProcessGroup& group,
                                       std::span<const Tensor> tensors) = 0;
  virtual uint64_t bytes_sent() const = 0;
};

// On all ranks of a group at once. Null, on all alike, if one of them cannot reach another's memory.
std::shared_ptr<Peers> open_peers(Gpu& gpu, const ProcessGroup& group, const PeerOptions& options);

}  // namespace agoq::comm
