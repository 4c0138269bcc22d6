// CPU kernels of ops/norm/wide_qk_norm.h. Sums over the tensor group come between them.
#pragma once

#include "ops/norm/wide_qk_norm.h"

namespace agoq::ops {

// What the kernels of both devices are given.
struct WideNorm {
  Heads heads;                     // of this rank
  Tensor wq, wk;                   // of its heads
  Tensor weights;                  // on the CPU both in fp32, one below the other
  float q_width = 0, k_width = 0;  // numbers that are normalised together, on all ranks
  float eps = 0;
};

namespace cpu {

// sums [T, 2] = Σ x² over this rank's q and over its k
void sum_squares(const Tensor& qkv, const WideNorm& norm, const Tensor& sums);
// x · rstd · w in place, with rstd from all ranks' Σ x²; rstd is written, if given.
void normalise_qk(const Tensor& qkv, const WideNorm& norm, const Tensor& sums, const Tensor& rstd);
// The same with a given rstd.
void scale_qk(const Tensor& qkv, const WideNorm& norm, const Tensor& rstd);
// sums [T, 2] = Σ dn·w·x over this rank's q and over its k
void sum_products(const Tensor& dqkv, const Tensor& qkv_before, const WideNorm& norm, const Tensor& sums);
// dqkv in place, with all ranks' Σ dn·w·x; dw [Hq D + Hkv D, 1] fp32 is written; partial [slices, Hq D + Hkv D] fp32.
void wide_qk_norm_backward(const Tensor& dqkv, const Tensor& qkv_before, const WideNorm& norm, const Tensor& rstd,
                           const Tensor& sums, const Tensor& dw, const Tensor& partial);

}  // namespace cpu
}  // namespace agoq::ops
