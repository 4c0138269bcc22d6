// CUDA kernels of ops/norm/wide_qk_norm.h: no checks, memory is there. They do what those of wide_qk_norm_cpu.h do.
#pragma once

#include "ops/norm/wide_qk_norm_cpu.h"

namespace agoq::ops::cuda {

void sum_squares(const Context& ctx, const Tensor& qkv, const WideNorm& norm, const Tensor& sums);
void normalise_qk(const Context& ctx, const Tensor& qkv, const WideNorm& norm, const Tensor& sums, const Tensor& rstd);
void scale_qk(const Context& ctx, const Tensor& qkv, const WideNorm& norm, const Tensor& rstd);
void sum_products(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const WideNorm& norm,
                  const Tensor& sums);
// q_slices [norm_slices, Hq D] and k_slices [norm_slices, Hkv D] fp32 are written: dw is the sum of their rows.
void wide_qk_norm_backward(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const WideNorm& norm,
                           const Tensor& rstd, const Tensor& sums, const Tensor& q_slices, const Tensor& k_slices);

}  // namespace agoq::ops::cuda
