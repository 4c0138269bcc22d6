// The norms of an architecture: of the residual stream, RMSNorm with weights, or LayerNorm without (OLMo), where w and
// dw are empty; and of q and k.
#pragma once

#include "model/model_config.h"
#include "ops/norm/layer_norm.h"
#include "ops/norm/rms_norm.h"
#include "ops/norm/wide_qk_norm.h"

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
  // The same into what a product reads.
  void forward_into(const Context& ctx, const Tensor& x, const Tensor& w, const codec::Quantized& keep_x,
                    const Tensor& rstd, const ops::Operand& n) const {
    if (layer_norm_) return ops::layer_norm_into(ctx, x, eps_, keep_x, rstd, n);
    ops::rms_norm_into(ctx, x, w, eps_, keep_x, rstd, n);
  }
  // n again, from what was kept.
  Tensor again(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w) const {
    return layer_norm_ ? ops::recompute_layer_norm(ctx, kept_x, rstd) : ops::recompute_rms_norm(ctx, kept_x, rstd, w);
  }
  // nᵀ [H, T] in 8-bit floats, for dW.
  ops::Operand again_transposed(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w,
                                ops::OperandFormat format) const {
    return layer_norm_ ? ops::recompute_layer_norm_transposed(ctx, kept_x, rstd, format)
                       : ops::recompute_rms_norm_transposed(ctx, kept_x, rstd, w, format);
  }
  // dx = residual + d(norm)(dn); dx may be the residual, which may be empty. dw accumulates. dx_rows, if given, is dx
  // in 8-bit floats.
  void backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                const Tensor& w, const Tensor& residual, const Tensor& dx, const ops::MainGrad& dw,
                const ops::Operand& dx_rows = {}) const {
    if (layer_norm_) return ops::layer_norm_backward_into(ctx, dn, kept_x, rstd, residual, dx, dx_rows);
    ops::rms_norm_backward_into(ctx, dn, kept_x, rstd, w, residual, dx, dw, dx_rows);
  }

 private:
  bool layer_norm_;
  float eps_;
};

// Of q and k before RoPE, in place; nothing where the model has none.
class QueryKeyNorm {
 public:
  QueryKeyNorm(const ModelConfig& config, const ops::Heads& heads)
      : kind_(config.qk_norm), eps_(config.norm_eps), heads_(heads) {}

  explicit operator bool() const { return kind_ != QkNorm::None; }
  // qkv [T, (Hq + 2 Hkv) D]; rstd, if kept, is that of SavedTensor::QkRstd.
  void forward(const Context& ctx, const Tensor& qkv, const Tensor& wq, const Tensor& wk, const Tensor& rstd) const {
    if (kind_ == QkNorm::Head) ops::qk_norm(ctx, qkv, heads_, wq, wk, eps_, rstd);
    if (kind_ == QkNorm::Wide) ops::wide_qk_norm(ctx, qkv, heads_, wq, wk, eps_, rstd);
  }
  // The same from a kept rstd.
  void again(const Context& ctx, const Tensor& qkv, const Tensor& wq, const Tensor& wk, const Tensor& rstd) const {
    if (kind_ == QkNorm::Head) ops::recompute_qk_norm(ctx, qkv, heads_, wq, wk, rstd);
    if (kind_ == QkNorm::Wide) ops::recompute_wide_qk_norm(ctx, qkv, heads_, wq, wk, rstd);
  }
  // dqkv becomes the gradient of q, k before the norm. dwq and dwk accumulate.
  void backward(const Context& ctx, const Tensor& dqkv, const Tensor& qkv_before, const Tensor& wq, const Tensor& wk,
                const Tensor& rstd, const ops::MainGrad& dwq, const ops::MainGrad& dwk) const {
    if (kind_ == QkNorm::Head) ops::qk_norm_backward(ctx, dqkv, qkv_before, heads_, wq, wk, rstd, dwq, dwk);
    if (kind_ == QkNorm::Wide) ops::wide_qk_norm_backward(ctx, dqkv, qkv_before, heads_, wq, wk, rstd, dwq, dwk);
  }

 private:
  QkNorm kind_;
  float eps_;
  ops::Heads heads_;
};

}  // namespace agoq::model
