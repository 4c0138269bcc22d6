// CUDA kernels of ops/norm/rms_norm.h: no checks, memory is there.
#pragma once

#include <algorithm>

#include "ops/norm/rms_norm.h"

namespace agoq::ops::cuda {

// Sums over rows are made as partial sums of so many slices of them, added in order: the result does not depend on the
// GPU. Enough slices to fill one, few enough to cost little; a power of two, as the number of rows often is.
inline int64_t norm_slices(int64_t rows, int64_t cols) {
  constexpr int64_t kFew = 256, kMany = 2048, kFloats = 1 << 20;
  return std::min(rows, std::clamp(kFloats / cols, kFew, kMany));
}

void rms_norm(const Context& ctx, const Tensor& x, const Tensor& w, float eps, const codec::Quantized& keep_x,
              const Tensor& rstd, const Operand& n);
void recompute_rms_norm(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w,
                        const Tensor& n);
// nt has one scale.
void recompute_rms_norm_transposed(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd,
                                   const Tensor& w, const Operand& nt);
// partial [norm_slices, H] fp32 is written: dw is the sum of its rows. dx_rows is as the op's, or none.
void rms_norm_backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                       const Tensor& w, const Tensor& residual, const Tensor& dx, const Operand& dx_rows,
                       const Tensor& partial);

// The weights of query heads and of key heads.
struct HeadWeights {
  Tensor q, k;
};
void qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const HeadWeights& w, float eps,
             const Tensor& rstd);
void recompute_qk_norm(const Context& ctx, const Tensor& qkv, const Heads& heads, const HeadWeights& w,
                       const Tensor& rstd);
// partial [2, slices, D] fp32 is written: dw of queries is the sum of the first rows, that of keys of the others.
void qk_norm_backward(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const Heads& heads,
                      const HeadWeights& w, const Tensor& rstd, const Tensor& partial);

}  // namespace agoq::ops::cuda
