// Bytes between the host and the device of a tensor. On the CPU they are plain copies.
#pragma once

#include "device/context.h"

namespace agoq {

// host -> device; the host bytes may change as soon as it returns.
void upload(const Context& ctx, const void* host, const Tensor& to);
// device -> host, after all work before it; the bytes are there when it returns.
void download(const Context& ctx, const Tensor& from, void* host);
// Between tensors of the device, of the same bytes, in the order of the stream.
void copy(const Context& ctx, const Tensor& from, const Tensor& to);
// Sets all bytes to zero, in the order of the stream.
void zero(const Context& ctx, const Tensor& tensor);

}  // namespace agoq
