// Tensors of a GPU that the other ranks of a group read and write where they lie, over NVLink or PCIe: in place,
// without a staging copy, and with one kernel where messages take many.
#pragma once

#include <memory>

#include "comm/transport/transport.h"

namespace agoq {
class Context;
}

namespace agoq::comm {

// Of each tensor the same number of bytes on every rank, in as many equal parts as there are ranks. Works in the order
// of the context's stream, as ProcessGroup::start() says; all ranks call the same. Must go before the tensors' arena.
class Window {
 public:
  virtual ~Window() = default;
  // All-to-all in place: part j <- part `rank` of rank j, for all j.
  virtual std::unique_ptr<Pending> all_to_all(const Context& ctx) = 0;
  // All-gather in place: part j <- part j of rank j.
  virtual std::unique_ptr<Pending> all_gather(const Context& ctx) = 0;
};

}  // namespace agoq::comm
