// Work beside the compute stream.
#pragma once

#include "device/context.h"

struct CUevent_st;

namespace agoq {

// On a GPU a stream of its own. Its kernels go first when both streams have some that could start: they are small, and
// other ranks wait for them. On the CPU there is one order of work, and everything is part of it.
class SideStream {
 public:
  SideStream() = default;
  ~SideStream();
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  // A context whose work goes here, behind what `ctx` was given until now. It is for ops without temporaries: those of
  // both streams would come from one stack and overwrite each other.
  Context behind(const Context& ctx);
  // What `ctx` is given from now on comes behind all work here.
  void join(const Context& ctx);

 private:
  void open();
  void close() noexcept;
  void order(CUstream_st* first, CUstream_st* then);

  CUstream_st* stream_ = nullptr;  // null on the CPU, and before it is used
  CUevent_st* point_ = nullptr;    // up to which one stream waits for the other
};

}  // namespace agoq
