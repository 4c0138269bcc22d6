#include "model/decoder_layer.h"

#include "comm/sum.h"
#include "ops/attention/rope.h"
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

// x += d
void add(const Context& ctx, const Tensor& d, const Tensor& x) {
  comm::sum(ctx, std::array{x, d}, x);
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
  const Tensor n1 = first_input(ctx, x, w, saved, kAttention);  // [T, H]
  const int64_t tokens = n1.rows(), qkv_cols = attention_.heads.cols();
  // With a norm of q and k, backward needs them as they are before it, and can redo the rest.
  const Tensor qkv = qk_norm_ ? ctx.empty({tokens, qkv_cols})
                              : saved.out(ctx, SavedTensor::Qkv, tokens, qkv_cols);  // [T, (Hq + 2 Hkv) D]
  ops::linear_into(ctx, n1, w[Param::Qkv], w[Param::QkvBias], qkv);
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
  const Tensor n2 = first_input(ctx, x, w, saved, kMlp);                                               // [T, H]
  const Tensor gate_up = ops::linear(ctx, n2, w[Param::GateUp]);                                       // [T, 2F]
  const Tensor h = ops::swiglu(ctx, gate_up, saved[SavedTensor::GateUp], saved[SavedTensor::Hidden]);  // [T, F]
  add_output(ctx, h, x, w, saved, kMlp);
}

void DecoderLayer::mlp_backward(const Context& ctx, const Tensor& dx, const LayerWeights& w, const SavedTensors& saved,
                                const LayerGradients& grads) const {
  Scope scope(ctx);
  const Tensor dy = output_gradient(ctx, dx, w, saved, grads, kMlp);  // [T, H]
  const Tensor dh = ops::linear_dx(ctx, dy, w[Param::Down]);          // [T, F]
  const auto [d_gate_up, h] = ops::swiglu_backward(ctx, dh, saved[SavedTensor::GateUp], saved[SavedTensor::Hidden]);
  ops::accumulate_dw(ctx, of(grads, Param::Down), dy, h);
  first_backward(ctx, d_gate_up, dx, w, saved, grads, kMlp);
}

void DecoderLayer::attention_backward(const Context& ctx, const Tensor& dx, const LayerWeights& w,
                                      const SavedTensors& saved, const LayerGradients& grads) const {
  Scope scope(ctx);
  const Tensor qkv = rotated_qkv(ctx, w, saved);
  const Tensor dy = output_gradient(ctx, dx, w, saved, grads, kAttention);  // [T, H]
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
    qk_norm_.backward(ctx, dqkv, saved.load(ctx, SavedTensor::Qkv), w[Param::QNorm], w[Param::KNorm],
                      saved.stat(SavedTensor::QkRstd), of(grads, Param::QNorm), of(grads, Param::KNorm));
  if (w[Param::QkvBias]) ops::accumulate_db(ctx, of(grads, Param::QkvBias), dqkv);
  first_backward(ctx, dqkv, dx, w, saved, grads, kAttention);
}

// What the branch's first product reads, of all tokens [T, H]: norm(x), or x itself.
Tensor DecoderLayer::first_input(const Context& ctx, const Tensor& x, const LayerWeights& w, const SavedTensors& saved,
                                 const Branch& branch) const {
  if (post_norm_) {
    saved.keep(ctx, branch.x, x);
    return ops::all_gather_tokens(ctx, x);
  }
  const Tensor own = norm_.forward(ctx, x, w[branch.norm], saved[branch.x], saved.stat(branch.rstd));
  saved.keep(ctx, branch.n, own);
  return ops::all_gather_tokens(ctx, own);
}

// x += h·wᵀ, or x += norm(h·wᵀ).
void DecoderLayer::add_output(const Context& ctx, const Tensor& h, const Tensor& x, const LayerWeights& w,
                              const SavedTensors& saved, const Branch& branch) const {
  if (!post_norm_) return ops::row_parallel_linear_add(ctx, h, w[branch.out], x);
  const Tensor y = ops::row_parallel_linear(ctx, h, w[branch.out]);
  add(ctx, norm_.forward(ctx, y, w[branch.norm], saved[branch.y], saved.stat(branch.rstd)), x);
}

// The gradient of the branch's last product, of all tokens [T, H], from that of the residual stream.
Tensor DecoderLayer::output_gradient(const Context& ctx, const Tensor& dx, const LayerWeights& w,
                                     const SavedTensors& saved, const LayerGradients& grads,
                                     const Branch& branch) const {
  if (!post_norm_) return ops::all_gather_tokens(ctx, dx);
  const Tensor dy = ctx.empty(dx.shape);
  norm_.backward(ctx, dx, saved[branch.y], saved.stat(branch.rstd), w[branch.norm], {}, dy, of(grads, branch.norm));
  return ops::all_gather_tokens(ctx, dy);
}

// Adds the branch's part to the gradient of its first weight and to dx, from the gradient of its first product.
void DecoderLayer::first_backward(const Context& ctx, const Tensor& dh, const Tensor& dx, const LayerWeights& w,
                                  const SavedTensors& saved, const LayerGradients& grads, const Branch& branch) const {
  const Tensor n = load_first_input(ctx, w, saved, branch);
  ops::accumulate_dw(ctx, of(grads, branch.in), dh, n);
  const Tensor dn = ops::linear_dx_scattered(ctx, dh, w[branch.in]);
  if (post_norm_) return add(ctx, dn, dx);
  norm_.backward(ctx, dn, saved[branch.x], saved.stat(branch.rstd), w[branch.norm], dx, dx, of(grads, branch.norm));
}

// first_input again. Over the tensor group travels what was kept, a quarter of the bytes of n.
Tensor DecoderLayer::load_first_input(const Context& ctx, const LayerWeights& w, const SavedTensors& saved,
                                      const Branch& branch) const {
  if (post_norm_) return saved.gather(ctx, branch.x);
  if (saved.kept(branch.n)) return saved.gather(ctx, branch.n);
  return norm_.again(ctx, ops::all_gather_tokens(ctx, saved[branch.x]),
                     ops::all_gather_tokens(ctx, saved.stat(branch.rstd)), w[branch.norm]);
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
