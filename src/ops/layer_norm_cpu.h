// CPU kernels of ops/layer_norm.h. `room` is per-thread scratch (ops/cpu.h).
#pragma once

#include "ops/layer_norm.h"

namespace agoq::ops::cpu {

void layer_norm(const Tensor& x, float eps, const codec::Quantized& keep_x, const Tensor& rstd, const Tensor& n,
                const Tensor& room);
void layer_norm_again(const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& n, const Tensor& room);
void layer_norm_backward(const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& residual,
                         const Tensor& dx, const Tensor& room);

}  // namespace agoq::ops::cpu
