// CPU kernels of ops/norm/rms_norm.h. `w` holds the norm weights in fp32, `workspace` is per-thread scratch
// (ops/cpu.h).
#pragma once

#include "ops/norm/rms_norm.h"

namespace agoq::ops::cpu {

// to [n] fp32 = from [n] fp32 or bf16
void widen(const Tensor& from, const Tensor& to);

void rms_norm(const Tensor& x, const Tensor& w, float eps, const codec::Quantized& keep_x, const Tensor& rstd,
              const Tensor& n, const Tensor& workspace);
void recompute_rms_norm(const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w, const Tensor& n,
                        const Tensor& workspace);
// dw [1, H] fp32 is written; partial [slices, H] fp32.
void rms_norm_backward(const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w,
                       const Tensor& residual, const Tensor& dx, const Tensor& dw, const Tensor& partial,
                       const Tensor& workspace);

// w [2, D]: for query heads and for key heads.
void qk_norm(const Tensor& qkv, const Heads& heads, const Tensor& w, float eps, const Tensor& rstd);
void recompute_qk_norm(const Tensor& qkv, const Heads& heads, const Tensor& w, const Tensor& rstd);
// dw [2, D] fp32 is written; partial [slices, 2 D] fp32.
void qk_norm_backward(const Tensor& dqkv, const Tensor& qkv_before, const Heads& heads, const Tensor& w,
                      const Tensor& rstd, const Tensor& dw, const Tensor& partial);

}  // namespace agoq::ops::cpu
