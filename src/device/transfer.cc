#include "device/transfer.h"

#include <cstring>

#include "device/transfer_cuda.h"

namespace agoq {

void upload(const Context& ctx, const void* host, const Tensor& to) {
  if (ctx.meta() || to.bytes() == 0) return;
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::upload(ctx, host, to);
  std::memcpy(to.data, host, to.bytes());
}

void download(const Context& ctx, const Tensor& from, void* host) {
  if (ctx.meta() || from.bytes() == 0) return;
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::download(ctx, from, host);
  std::memcpy(host, from.data, from.bytes());
}

void copy(const Context& ctx, const Tensor& from, const Tensor& to) {
  require(from.bytes() == to.bytes(), "copy: {} bytes do not fit {}", from.bytes(), to.bytes());
  if (ctx.meta() || to.bytes() == 0) return;
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::copy(ctx, from, to);
  std::memcpy(to.data, from.data, to.bytes());
}

void zero(const Context& ctx, const Tensor& tensor) {
  if (ctx.meta() || tensor.bytes() == 0) return;
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::zero(ctx, tensor);
  std::memset(tensor.data, 0, tensor.bytes());
}

}  // namespace agoq
