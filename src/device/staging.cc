#include "device/staging.h"

#include "device/transfer.h"

namespace agoq {

Staging::Staging(const Arena& arena, size_t bytes) : bytes_(bytes) {
  if constexpr (kCudaBuild)
    if (arena.gpu()) open_buffers();
}

Staging::~Staging() {
  if constexpr (kCudaBuild) close_buffers();
}

void Staging::load(const Context& ctx, std::initializer_list<Copy> copies) {
  size_t total = 0;
  for (const Copy& copy : copies) {
    require(copy.from.bytes() == copy.to.bytes(), "staging: {} bytes for a tensor of {}", copy.from.bytes(),
            copy.to.bytes());
    total += copy.from.bytes();
  }
  require(total <= bytes_, "staging: {} bytes for a buffer of {}", total, bytes_);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return load_pinned(ctx, copies);
  for (const Copy& copy : copies) upload(ctx, copy.from.data, copy.to);
}

}  // namespace agoq
