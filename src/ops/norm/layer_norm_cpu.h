// CPU kernels of ops/norm/layer_norm.h. `workspace` is per-thread scratch (ops/cpu.h).
#pragma once

#include "ops/norm/layer_norm.h"

namespace agoq::ops::cpu {

void layer_norm(const Tensor& x, float eps, const codec::Quantized& keep_x, const Tensor& rstd, const Tensor& n,
                const Tensor& workspace);
void recompute_layer_norm(const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& n, const Tensor& workspace);
void layer_norm_backward(const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& residual,
                         const Tensor& dx, const Tensor& workspace);

}  // namespace agoq::ops::cpu
