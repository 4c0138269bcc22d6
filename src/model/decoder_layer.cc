#include "model/decoder_layer.h"

#include "ops/attention/rope.h"
#include "ops/linear/linear.h"
#include "ops/mlp/swiglu.h"
#include "ops/sequence_parallel.h"

namespace agoq::model {
namespace {

const ops::MainGrad& of(const LayerGradients& grads, Param p) {
  return grads[static_cast<size_t>(p)];
}

}  // namespace

DecoderLayer::DecoderLayer(const ModelConfig& config, const LayerSpec& spec, Tensor rope_table)
    : spec_(spec),
      attention_{spec.heads, config.window},
      norm_(config),
      qk_norm_(config.qk_norm),
      rope_table_(rope_table) {}

void DecoderLayer::forward(const Context& ctx, const Tensor& x, const LayerWeights& w,
                           const SavedTensors& saved) const {
  attention_forward(ctx, x, w, saved);  // x1 -> x2
  mlp_forward(ctx, x, w, saved);        // x2 -> x3
}

void DecoderLayer::backward(const Context& ctx, const Tensor& dx, const LayerWeights& w, const SavedTensors& saved,
                            const LayerGradients& grads) const {
  mlp_backward(ctx, dx, w, saved, grads);        // dx3 -> dx2
  attention_backward(ctx, dx, w, saved, grads);  // dx2 -> dx1
}

void DecoderLayer::backward_from_x1(const Context& ctx, const Tensor& dx, const LayerWeights& w,
                                    const SavedTensors& saved, const LayerGradients& grads) const {
  Scope scope(ctx);
  const SavedTensors again(ctx, spec_, dx.rows() * spec_.shard.size);
  {
    Scope recompute_forward(ctx);
    forward(ctx, saved.copy(ctx, SavedTensor::X1), w, again);
  }
  backward(ctx, dx, w, again, grads);
}

void DecoderLayer::attention_forward(const Context& ctx, const Tensor& x, const LayerWeights& w,
                                     const SavedTensors& saved) const {
  Scope scope(ctx);
  const Tensor own_n1 =
      norm_.forward(ctx, x, w[Param::AttentionNorm], saved[SavedTensor::X1], saved.stat(SavedTensor::Rstd1));
  saved.keep(ctx, SavedTensor::N1, own_n1);
  const Tensor n1 = ops::all_gather_tokens(ctx, own_n1);  // [T, H]
  const int64_t tokens = n1.rows(), qkv_cols = attention_.heads.cols();
  // With a norm of q and k, backward needs them as they are before it, and can redo the rest.
  const Tensor qkv = qk_norm_ ? ctx.empty({tokens, qkv_cols})
                              : saved.out(ctx, SavedTensor::Qkv, tokens, qkv_cols);  // [T, (Hq + 2 Hkv) D]
  ops::linear_into(ctx, n1, w[Param::Qkv], w[Param::QkvBias], qkv);
  if (qk_norm_) {
    saved.keep(ctx, SavedTensor::Qkv, qkv);
    ops::qk_norm(ctx, qkv, attention_.heads, w[Param::QNorm], w[Param::KNorm], norm_.eps(),
                 saved.stat(SavedTensor::QkRstd));
  }
  ops::rope(ctx, qkv, attention_.heads, rope_table_);
  if (!qk_norm_) saved.keep(ctx, SavedTensor::Qkv, qkv);
  const Tensor o = saved.out(ctx, SavedTensor::O, tokens, attention_.heads.q_cols());  // [T, Hq D]
  ops::attention_into(ctx, qkv, attention_, o, saved.stat(SavedTensor::Lse));
  saved.keep(ctx, SavedTensor::O, o);
  ops::row_parallel_linear_add(ctx, o, w[Param::Out], x);
}

void DecoderLayer::mlp_forward(const Context& ctx, const Tensor& x, const LayerWeights& w,
                               const SavedTensors& saved) const {
  Scope scope(ctx);
  const Tensor own_n2 =
      norm_.forward(ctx, x, w[Param::MlpNorm], saved[SavedTensor::X2], saved.stat(SavedTensor::Rstd2));
  saved.keep(ctx, SavedTensor::N2, own_n2);
  const Tensor n2 = ops::all_gather_tokens(ctx, own_n2);                                               // [T, H]
  const Tensor gate_up = ops::linear(ctx, n2, w[Param::GateUp]);                                       // [T, 2F]
  const Tensor h = ops::swiglu(ctx, gate_up, saved[SavedTensor::GateUp], saved[SavedTensor::Hidden]);  // [T, F]
  ops::row_parallel_linear_add(ctx, h, w[Param::Down], x);
}

void DecoderLayer::mlp_backward(const Context& ctx, const Tensor& dx, const LayerWeights& w, const SavedTensors& saved,
                                const LayerGradients& grads) const {
  Scope scope(ctx);
  const Tensor dy = ops::all_gather_tokens(ctx, dx);          // [T, H]
  const Tensor dh = ops::linear_dx(ctx, dy, w[Param::Down]);  // [T, F]
  const auto [d_gate_up, h] = ops::swiglu_backward(ctx, dh, saved[SavedTensor::GateUp], saved[SavedTensor::Hidden]);
  ops::accumulate_dw(ctx, of(grads, Param::Down), dy, h);
  const Tensor n2 = saved.kept(SavedTensor::N2)
                        ? saved.gather(ctx, SavedTensor::N2)
                        : recompute_norm(ctx, saved, SavedTensor::X2, SavedTensor::Rstd2, w[Param::MlpNorm]);
  ops::accumulate_dw(ctx, of(grads, Param::GateUp), d_gate_up, n2);
  const Tensor dn2 = ops::linear_dx_scattered(ctx, d_gate_up, w[Param::GateUp]);
  norm_.backward(ctx, dn2, saved[SavedTensor::X2], saved.stat(SavedTensor::Rstd2), w[Param::MlpNorm], dx, dx,
                 of(grads, Param::MlpNorm));
}

void DecoderLayer::attention_backward(const Context& ctx, const Tensor& dx, const LayerWeights& w,
                                      const SavedTensors& saved, const LayerGradients& grads) const {
  Scope scope(ctx);
  const Tensor qkv = rotated_qkv(ctx, w, saved);
  const Tensor dy = ops::all_gather_tokens(ctx, dx);  // [T, H]
  Tensor o, lse;
  if (saved.kept(SavedTensor::O)) {
    o = saved.load(ctx, SavedTensor::O);
    lse = saved.stat(SavedTensor::Lse);
  } else {
    lse = ctx.empty(DType::F32, {attention_.heads.query, qkv.rows()});
    o = ops::attention(ctx, qkv, attention_, lse);
  }
  const Tensor d_o = ops::linear_dx(ctx, dy, w[Param::Out]);
  ops::accumulate_dw(ctx, of(grads, Param::Out), dy, o);
  const Tensor dqkv = ops::attention_backward(ctx, d_o, qkv, o, lse, attention_);
  ops::rope_backward(ctx, dqkv, attention_.heads, rope_table_);
  if (qk_norm_)
    ops::qk_norm_backward(ctx, dqkv, saved.load(ctx, SavedTensor::Qkv), attention_.heads, w[Param::QNorm],
                          w[Param::KNorm], saved.stat(SavedTensor::QkRstd), of(grads, Param::QNorm),
                          of(grads, Param::KNorm));
  if (w[Param::QkvBias]) ops::accumulate_db(ctx, of(grads, Param::QkvBias), dqkv);
  const Tensor n1 = saved.kept(SavedTensor::N1)
                        ? saved.gather(ctx, SavedTensor::N1)
                        : recompute_norm(ctx, saved, SavedTensor::X1, SavedTensor::Rstd1, w[Param::AttentionNorm]);
  ops::accumulate_dw(ctx, of(grads, Param::Qkv), dqkv, n1);
  const Tensor dn1 = ops::linear_dx_scattered(ctx, dqkv, w[Param::Qkv]);
  norm_.backward(ctx, dn1, saved[SavedTensor::X1], saved.stat(SavedTensor::Rstd1), w[Param::AttentionNorm], dx, dx,
                 of(grads, Param::AttentionNorm));
}

// n1 or n2 of all tokens again. Over the tensor group travels what was kept, a quarter of the bytes of n.
Tensor DecoderLayer::recompute_norm(const Context& ctx, const SavedTensors& saved, SavedTensor x, SavedTensor rstd,
                                    const Tensor& w) const {
  return norm_.again(ctx, ops::all_gather_tokens(ctx, saved[x]), ops::all_gather_tokens(ctx, saved.stat(rstd)), w);
}

// q, k, v as attention saw them.
Tensor DecoderLayer::rotated_qkv(const Context& ctx, const LayerWeights& w, const SavedTensors& saved) const {
  if (!qk_norm_) return saved.load(ctx, SavedTensor::Qkv);
  const Tensor qkv = saved.copy(ctx, SavedTensor::Qkv);
  ops::recompute_qk_norm(ctx, qkv, attention_.heads, w[Param::QNorm], w[Param::KNorm], saved.stat(SavedTensor::QkRstd));
  ops::rope(ctx, qkv, attention_.heads, rope_table_);
  return qkv;
}

}  // namespace agoq::model
