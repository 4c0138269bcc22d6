// The CUDA side of transfer.h: no checks.
#pragma once

#include "device/context.h"

namespace agoq::cuda {

void upload(const Context& ctx, const void* host, const Tensor& to);
void download(const Context& ctx, const Tensor& from, void* host);
void copy(const Context& ctx, const Tensor& from, const Tensor& to);
void zero(const Context& ctx, const Tensor& tensor);

}  // namespace agoq::cuda
