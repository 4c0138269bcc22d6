// CUDA kernels of ops/norm/layer_norm.h: no checks, memory is there.
#pragma once

#include "ops/norm/layer_norm.h"

namespace agoq::ops::cuda {

void layer_norm(const Context& ctx, const Tensor& x, float eps, const codec::Quantized& keep_x, const Tensor& rstd,
                const Tensor& n);
void recompute_layer_norm(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& n);
void layer_norm_backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                         const Tensor& residual, const Tensor& dx);

}  // namespace agoq::ops::cuda
