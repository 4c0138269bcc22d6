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

void SideStream::join(const Context& ctx) {
  if constexpr (kCudaBuild)
    if (stream_) order(stream_, ctx.stream());
}

}  // namespace agoq
