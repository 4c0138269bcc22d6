// The norm of an architecture's residual stream: RMSNorm with weights, or LayerNorm without (OLMo). Where there are no
// weights, w and dw are empty.
#pragma once

#include "model/model_config.h"
#include "ops/norm/layer_norm.h"
#include "ops/norm/rms_norm.h"

namespace agoq::model {

class Norm {
 public:
  explicit Norm(const ModelConfig& config) : layer_norm_(config.layer_norm), eps_(config.norm_eps) {}

  float eps() const { return eps_; }
  // x [T, H] -> n [T, H]; keeps x and rstd [T] for backward.
  Tensor forward(const Context& ctx, const Tensor& x, const Tensor& w, const codec::Quantized& keep_x = {},
                 const Tensor& rstd = {}) const {
    return layer_norm_ ? ops::layer_norm(ctx, x, eps_, keep_x, rstd) : ops::rms_norm(ctx, x, w, eps_, keep_x, rstd);
  }
  // n again, from what was kept.
  Tensor again(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w) const {
    return layer_norm_ ? ops::recompute_layer_norm(ctx, kept_x, rstd) : ops::recompute_rms_norm(ctx, kept_x, rstd, w);
  }
  // dx = residual + d(norm)(dn); dx may be the residual, which may be empty. dw accumulates.
  void backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                const Tensor& w, const Tensor& residual, const Tensor& dx, const ops::MainGrad& dw) const {
    if (layer_norm_) return ops::layer_norm_backward_into(ctx, dn, kept_x, rstd, residual, dx);
    ops::rms_norm_backward_into(ctx, dn, kept_x, rstd, w, residual, dx, dw);
  }

 private:
  bool layer_norm_;
  float eps_;
};

}  // namespace agoq::model
