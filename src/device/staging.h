// Small host arrays on their way to the device, copied while it computes.
#pragma once

#include <array>
#include <initializer_list>

#include "device/context.h"

struct CUevent_st;

namespace agoq {

// On a GPU: two pinned buffers used in turn, so that the host fills one while the copy of the other waits in the
// stream. On the CPU: plain copies, and no buffers.
class Staging {
 public:
  // Each load() holds at most `bytes`.
  Staging(const Arena& arena, size_t bytes);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  struct Copy {
    Tensor from;  // host
    Tensor to;    // device, of the same bytes
  };
  // The host arrays may change as soon as it returns.
  void load(const Context& ctx, std::initializer_list<Copy> copies);

 private:
  struct PinnedBuffer {
    uint8_t* data = nullptr;
    CUevent_st* copied = nullptr;  // in the stream, behind the last copy out of it
  };
  void open_buffers();
  void close_buffers() noexcept;
  void load_pinned(const Context& ctx, std::initializer_list<Copy> copies);

  size_t bytes_;
  std::array<PinnedBuffer, 2> buffers_;
  size_t next_ = 0;
};

}  // namespace agoq
