#include "ops/norm/layer_norm_cuda.h"

#include "ops/norm/norm_kernels.cuh"

namespace agoq::ops::cuda {

void layer_norm(const Context& ctx, const Tensor& x, float eps, const codec::Quantized& keep_x, const Tensor& rstd,
                const Operand& n) {
  norm_forward<NormKind::Layer>(ctx, x, {}, eps, keep_x, rstd, n);
}

void recompute_layer_norm(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& n) {
  recompute_norm<NormKind::Layer>(ctx, kept_x, rstd, {}, n);
}

void recompute_layer_norm_transposed(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd,
                                     const Tensor& mean, const Operand& nt) {
  recompute_norm_turned<NormKind::Layer>(ctx, kept_x, rstd, {}, mean, nt);
}

void layer_norm_backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                         const Tensor& residual, const Tensor& dx, const Operand& dx_rows) {
  norm_backward<NormKind::Layer>(ctx, dn, kept_x, rstd, {}, residual, dx, dx_rows, {});
}

}  // namespace agoq::ops::cuda
