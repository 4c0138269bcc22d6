#include "model/decoder_layer.h"

#include "comm/sum.h"
#include "ops/attention/rope.h"
#include "ops/linear/fp8.h"
#include "ops/linear/linear.h"
#include "ops/mlp/swiglu.h"
#include "ops/sequence_parallel.h"

namespace agoq::model {
namespace {

constexpr Branch kAttention = {Param::AttentionNorm, Param::Qkv,      Param::Out,        SavedTensor::X1,
                               SavedTensor::N1,      SavedTensor::Y1, SavedTensor::Rstd1};
constexpr Branch kMlp = {Param::MlpNorm,  Param::GateUp,   Param::Down,       SavedTensor::X2,
                         SavedTensor::N2, SavedTensor::Y2, SavedTensor::Rstd2};

const ops::MainGrad& of(const LayerGradients& grads, Param p) {
  return grads[static_cast<size_t>(p)];
}

}  // namespace

DecoderLayer::DecoderLayer(const ModelConfig& config, const LayerSpec& spec, Tensor rope_table)
    : spec_(spec),
      attention_{spec.heads, config.window},
      norm_(config),
      qk_norm_(config, spec.heads),
      post_norm_(config.post_norm),
      rope_table_(rope_table) {}

void DecoderLayer::forward(const Context& ctx, const Tensor& x, const LayerWeights& w,
                           const SavedTensors& saved) const {
  attention_forward(ctx, x, w, saved);  // x1 -> x2
  mlp_forward(ctx, x, w, saved);        // x2 -> x3
}

void DecoderLayer::backward(const Context& ctx, const StreamGradient& d, const LayerWeights& w,
                            const SavedTensors& saved, const LayerGradients& grads) const {
  mlp_backward(ctx, d, w, saved, grads);        // dx3 -> dx2
  attention_backward(ctx, d, w, saved, grads);  // dx2 -> dx1
}

void DecoderLayer::backward_from_x1(const Context& ctx, const StreamGradient& d, const LayerWeights& w,
                                    const SavedTensors& saved, const LayerGradients& grads) const {
  Scope scope(ctx);
  const SavedTensors again(ctx, spec_, d.dx.rows() * spec_.shard.size);
  {
    Scope recompute_forward(ctx);
    forward(ctx, saved.copy(ctx, SavedTensor::X1), w, again);
  }
  backward(ctx, d, w, again, grads);
}

void DecoderLayer::attention_forward(const Context& ctx, const Tensor& x, const LayerWeights& w,
                                     const SavedTensors& saved) const {
  Scope scope(ctx);
  const ops::Operand n1 = first_input(ctx, x, w, saved, kAttention);  // [T, H]
  const int64_t tokens = n1.rows(), qkv_cols = attention_.heads.cols();
  // With a norm of q and k, backward needs them as they are before it, and can redo the rest.
  const Tensor qkv = qk_norm_ ? ctx.empty({tokens, qkv_cols})
                              : saved.out(ctx, SavedTensor::Qkv, tokens, qkv_cols);  // [T, (Hq + 2 Hkv) D]
  ops::linear_into(ctx, n1, w.matrix(Param::Qkv), w[Param::QkvBias], qkv);
  if (qk_norm_) {
    saved.keep(ctx, SavedTensor::Qkv, qkv);
    qk_norm_.forward(ctx, qkv, w[Param::QNorm], w[Param::KNorm], saved.stat(SavedTensor::QkRstd));
  }
  ops::rope(ctx, qkv, attention_.heads, rope_table_);
  if (!qk_norm_) saved.keep(ctx, SavedTensor::Qkv, qkv);
  const Tensor o = saved.out(ctx, SavedTensor::O, tokens, attention_.heads.q_cols());  // [T, Hq D]
  ops::attention_into(ctx, qkv, attention_, o, saved.stat(SavedTensor::Lse));
  saved.keep(ctx, SavedTensor::O, o);
  add_output(ctx, o, x, w, saved, kAttention);
}

void DecoderLayer::mlp_forward(const Context& ctx, const Tensor& x, const LayerWeights& w,
                               const SavedTensors& saved) const {
  Scope scope(ctx);
  const ops::Operand n2 = first_input(ctx, x, w, saved, kMlp);           // [T, H]
  const Tensor gate_up = ops::linear(ctx, n2, w.matrix(Param::GateUp));  // [T, 2F]
  const int64_t tokens = gate_up.rows(), width = gate_up.cols() / 2;
  const ops::Operand h =
      saved.kept(SavedTensor::Hidden) ? ctx.empty({tokens, width}) : ops::forward_input(ctx, tokens, width);  // [T, F]
  ops::swiglu_into(ctx, gate_up, saved[SavedTensor::GateUp], saved[SavedTensor::Hidden], h);
  add_output(ctx, h, x, w, saved, kMlp);
}

void DecoderLayer::mlp_backward(const Context& ctx, const StreamGradient& d, const LayerWeights& w,
                                const SavedTensors& saved, const LayerGradients& grads) const {
  Scope scope(ctx);
  const ops::Operand dy = output_gradient(ctx, d, w, saved, grads, kMlp);  // [T, H]
  const Tensor dh = ops::linear_dx(ctx, dy, w.matrix(Param::Down));        // [T, F]
  const auto [d_gate_up, ht] =
      ops::swiglu_backward_operands(ctx, dh, saved[SavedTensor::GateUp], saved[SavedTensor::Hidden]);
  ops::accumulate_dw(ctx, of(grads, Param::Down), dy, ht);
  first_backward(ctx, d_gate_up, d, w, saved, grads, kMlp);
}

void DecoderLayer::attention_backward(const Context& ctx, const StreamGradient& d, const LayerWeights& w,
                                      const SavedTensors& saved, const LayerGradients& grads) const {
  Scope scope(ctx);
  const Tensor qkv = rotated_qkv(ctx, w, saved);
  const ops::Operand dy = output_gradient(ctx, d, w, saved, grads, kAttention);  // [T, H]
  Tensor o, lse;
  if (saved.kept(SavedTensor::O)) {
    o = saved.load(ctx, SavedTensor::O);
    lse = saved.stat(SavedTensor::Lse);
  } else {
    lse = ctx.empty(DType::F32, {attention_.heads.query, qkv.rows()});
    o = ops::attention(ctx, qkv, attention_, lse);
  }
  const Tensor d_o = ops::linear_dx(ctx, dy, w.matrix(Param::Out));
  ops::accumulate_dw(ctx, of(grads, Param::Out), dy, ops::transposed(o));
  const Tensor dqkv = ops::attention_backward(ctx, d_o, qkv, o, lse, attention_);
  first_backward(ctx, qkv_gradient(ctx, dqkv, w, saved, grads), d, w, saved, grads, kAttention);
}

// What the branch's first product reads, of all tokens [T, H]: norm(x), or x itself.
ops::Operand DecoderLayer::first_input(const Context& ctx, const Tensor& x, const LayerWeights& w,
                                       const SavedTensors& saved, const Branch& branch) const {
  if (post_norm_) {
    saved.keep(ctx, branch.x, x);
    return ops::all_gather_tokens(ctx, x);
  }
  const bool kept = saved.kept(branch.n);
  const ops::Operand own = kept ? ctx.empty(x.shape) : ops::forward_input(ctx, x.rows(), x.cols());
  norm_.forward_into(ctx, x, w[branch.norm], saved[branch.x], saved.stat(branch.rstd), own);
  if (kept) saved.keep(ctx, branch.n, own.data);
  return ops::all_gather_tokens(ctx, own);
}

// x += h·wᵀ, or x += norm(h·wᵀ).
void DecoderLayer::add_output(const Context& ctx, const ops::Operand& h, const Tensor& x, const LayerWeights& w,
                              const SavedTensors& saved, const Branch& branch) const {
  if (!post_norm_) return ops::row_parallel_linear_add(ctx, h, w.matrix(branch.out), x);
  const Tensor y = ops::row_parallel_linear(ctx, h, w.matrix(branch.out));
  comm::add(ctx, norm_.forward(ctx, y, w[branch.norm], saved[branch.y], saved.stat(branch.rstd)), x);
}

// The gradient of the branch's last product, of all tokens [T, H], from that of the residual stream.
ops::Operand DecoderLayer::output_gradient(const Context& ctx, const StreamGradient& d, const LayerWeights& w,
                                           const SavedTensors& saved, const LayerGradients& grads,
                                           const Branch& branch) const {
  if (!post_norm_) return ops::all_gather_tokens(ctx, d.dx_rows.data ? d.dx_rows : ops::Operand(d.dx));
  const Tensor dy = ctx.empty(d.dx.shape);
  const ops::Operand dy_rows = ops::fp8_gradient_input(ctx, dy.rows(), dy.cols());
  norm_.backward(ctx, d.dx, saved[branch.y], saved.stat(branch.rstd), w[branch.norm], {}, dy, of(grads, branch.norm),
                 dy_rows);
  return ops::all_gather_tokens(ctx, dy_rows.data ? dy_rows : ops::Operand(dy));
}

// Adds the branch's part to the gradient of its first weight and to d, from the gradient of its first product.
void DecoderLayer::first_backward(const Context& ctx, const ops::Operand& dh, const StreamGradient& d,
                                  const LayerWeights& w, const SavedTensors& saved, const LayerGradients& grads,
                                  const Branch& branch) const {
  {
    Scope scope(ctx);
    ops::accumulate_dw(ctx, of(grads, branch.in), dh, first_input_transposed(ctx, w, saved, branch));
  }
  const Tensor dn = ops::linear_dx_scattered(ctx, dh, w.matrix(branch.in));
  if (post_norm_) return comm::add(ctx, dn, d.dx);
  norm_.backward(ctx, dn, saved[branch.x], saved.stat(branch.rstd), w[branch.norm], d.dx, d.dx, of(grads, branch.norm),
                 ops::counted(ctx, d.dx_rows, ops::Fp8Role::Dy));
}

// first_input again, as dW reads it [H, T]. Over the tensor group travels what was kept, a quarter of the bytes of n.
ops::Operand DecoderLayer::first_input_transposed(const Context& ctx, const LayerWeights& w, const SavedTensors& saved,
                                                  const Branch& branch) const {
  if (post_norm_) return ops::transposed(saved.gather(ctx, branch.x));
  if (saved.kept(branch.n)) return ops::transposed(saved.gather(ctx, branch.n));
  const codec::Quantized x = ops::all_gather_tokens(ctx, saved[branch.x]);
  const Tensor rstd = ops::all_gather_tokens(ctx, saved.stat(branch.rstd));
  if (ctx.fp8 && ctx.fp8->dw_in_fp8() && !ctx.fp8->delayed)
    return norm_.again_transposed(ctx, x, rstd, w[branch.norm], ctx.fp8->dw_x);
  return ops::transposed(norm_.again(ctx, x, rstd, w[branch.norm]));
}

// The gradient of what the qkv product made, from that of what attention saw.
ops::Operand DecoderLayer::qkv_gradient(const Context& ctx, const Tensor& dqkv, const LayerWeights& w,
                                        const SavedTensors& saved, const LayerGradients& grads) const {
  const bool has_bias = static_cast<bool>(w[Param::QkvBias]);
  ops::Operand d;
  if (qk_norm_) {
    ops::rope_backward(ctx, dqkv, attention_.heads, rope_table_);
    qk_norm_.backward(ctx, dqkv, saved.load(ctx, SavedTensor::Qkv), w[Param::QNorm], w[Param::KNorm],
                      saved.stat(SavedTensor::QkRstd), of(grads, Param::QNorm), of(grads, Param::KNorm));
  } else {
    d = ops::rope_backward_input(ctx, dqkv, attention_.heads, rope_table_, has_bias);
  }
  if (has_bias) ops::accumulate_db(ctx, of(grads, Param::QkvBias), dqkv);
  return qk_norm_ ? ops::to_gradient_input(ctx, dqkv) : d;
}

// q, k, v as attention saw them.
Tensor DecoderLayer::rotated_qkv(const Context& ctx, const LayerWeights& w, const SavedTensors& saved) const {
  if (!qk_norm_) return saved.load(ctx, SavedTensor::Qkv);
  const Tensor qkv = saved.copy(ctx, SavedTensor::Qkv);
  qk_norm_.again(ctx, qkv, w[Param::QNorm], w[Param::KNorm], saved.stat(SavedTensor::QkRstd));
  ops::rope(ctx, qkv, attention_.heads, rope_table_);
  return qkv;
}

}  // namespace agoq::model
