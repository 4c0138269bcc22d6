// Work beside the compute stream.
#pragma once

#include "device/context.h"

struct CUevent_st;

namespace agoq {

// A point in the order of a side stream's work; on the CPU there is nothing to wait for.
class SideMark {
 public:
  SideMark() = default;
  ~SideMark();
  SideMark(const SideMark&) = delete;
  SideMark& operator=(const SideMark&) = delete;

 private:
  friend class SideStream;
  void close() noexcept;
  CUevent_st* event_ = nullptr;
};

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
  // The end of the work here so far; and what `ctx` is given from now on comes behind it.
  void mark(SideMark& mark);
  static void wait(const Context& ctx, const SideMark& mark);

 private:
  void open();
  void close() noexcept;
  void order(CUstream_st* first, CUstream_st* then);
  void record(SideMark& mark);
  static void hold(CUstream_st* stream, const SideMark& mark);

  CUstream_st* stream_ = nullptr;  // null on the CPU, and before it is used
  CUevent_st* point_ = nullptr;    // up to which one stream waits for the other
};

}  // namespace agoq
