// CUDA kernels of ops/norm/layer_norm.h: no checks, memory is there.
#pragma once

#include "ops/norm/layer_norm.h"

namespace agoq::ops::cuda {

void layer_norm(const Context& ctx, const Tensor& x, float eps, const codec::Quantized& keep_x, const Tensor& rstd,
                const Operand& n);
void recompute_layer_norm(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& n);
// nt has one scale; mean [T] fp32 is scratch.
void recompute_layer_norm_transposed(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd,
                                     const Tensor& mean, const Operand& nt);
void layer_norm_backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                         const Tensor& residual, const Tensor& dx, const Operand& dx_rows);

}  // namespace agoq::ops::cuda
