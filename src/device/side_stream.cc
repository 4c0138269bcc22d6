#include "device/side_stream.h"

namespace agoq {

SideStream::~SideStream() {
  if constexpr (kCudaBuild) close();
}

Context SideStream::behind(const Context& ctx) {
  Context beside = ctx;
  if constexpr (kCudaBuild) {
    if (ctx.cuda()) {
      if (!stream_) open();
      order(ctx.stream(), stream_);
      beside.use_stream(stream_);
    }
  }
  return beside;
}

SideMark::~SideMark() {
  if constexpr (kCudaBuild) close();
}

void SideStream::mark(SideMark& mark) {
  if constexpr (kCudaBuild)
    if (stream_) record(mark);
}

void SideStream::wait(const Context& ctx, const SideMark& mark) {
  if constexpr (kCudaBuild)
    if (mark.event_) hold(ctx.stream(), mark);
}

void SideStream::join(const Context& ctx) {
  if constexpr (kCudaBuild)
    if (stream_) order(stream_, ctx.stream());
}

}  // namespace agoq
