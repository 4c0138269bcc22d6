#include "bench/op.h"

#include <cmath>
#include <memory>
#include <utility>

#include "bench/fp8_product.h"
#include "bench/one_layer.h"
#include "ops/attention/attention.h"
#include "ops/attention/rope.h"
#include "ops/gradient/gradient_norm.h"
#include "ops/head/cross_entropy.h"
#include "ops/head/embedding.h"
#include "ops/linear/linear.h"
#include "ops/mlp/swiglu.h"
#include "ops/norm/rms_norm.h"

namespace agoq::bench {
namespace {

using codec::Codec;
using codec::Quantized;
using model::Param;
using model::SavedTensor;
using ops::Fp8Recipe;
using ops::OperandFormat;

constexpr Param kMatrices[] = {Param::Qkv, Param::Out, Param::GateUp, Param::Down};
constexpr double kSmallRate = 1e-6;  // so that weights stay what they are

template <class... T>
double bytes_of(const T&... held) {
  return (static_cast<double>(held.bytes()) + ...);
}

// The job that all ops speak of: each function below makes operands and tells what the op must do with them.
struct OpSetting {
  explicit OpSetting(parallel::RunSpec given)
      : run_spec(std::move(given)),
        spec(run_spec.model),
        heads(run_spec.model.heads),
        attention{heads, run_spec.model.window} {}

  const parallel::RunSpec run_spec;
  const model::LayerSpec spec;
  const ops::Heads heads;
  const ops::AttentionSpec attention;
  const int64_t tokens = run_spec.tokens(), hidden = run_spec.model.hidden_size, ffn = run_spec.model.ffn_size;
  const float eps = run_spec.model.norm_eps;
  const std::optional<Fp8Recipe>& fp8 = run_spec.precision.fp8.recipe;

  Tensor weight(const Workbench& b, Param p) const {
    return spec[p].one_dimensional() ? b.numbers({spec[p].cols}) : b.numbers({spec[p].rows, spec[p].cols});
  }
  double product_flops(Param p) const { return 2 * static_cast<double>(tokens) * static_cast<double>(spec[p].count()); }
  double attention_flops() const {
    return static_cast<double>(tokens) * run_spec.model.attention_flops_per_token(run_spec.sequence_length);
  }
  bool is_kept(SavedTensor k) const { return run_spec.recipe.at(0, k) != Codec::None; }
  // What backward reads where nothing was kept is made again, and exact.
  Codec codec_of(SavedTensor k) const {
    return is_kept(k) ? run_spec.recipe.at(0, k) : codec::plain_codec(run_spec.precision.compute);
  }
  Quantized out(const Workbench& b, SavedTensor k) const {
    return b.out(codec_of(k), tokens, {spec[k].cols, spec[k].segment});
  }
  Quantized codes(const Workbench& b, SavedTensor k) const {
    const Quantized q = out(b, k);
    b.fill(q);
    return q;
  }
  Quantized codes_if_kept(const Workbench& b, SavedTensor k) const { return is_kept(k) ? codes(b, k) : Quantized{}; }
  ops::MainGrad grad(const Workbench& b, Param p) const {
    const Codec codec = spec[p].one_dimensional() ? Codec::Fp32 : run_spec.precision.main_grads;
    return {b.codes(codec, spec[p].rows, spec[p].blocks()), 1, run_spec.precision.stochastic};
  }

  // --- which ops write operands in 8-bit floats ----------------------------------------------------------------------
  // As ops/linear/fp8.h does it in forward_input and gradient_input.
  bool by_rows(int64_t k, OperandFormat Fp8Recipe::*format) const {
    constexpr ops::Granularity kRow = ops::Granularity::Row;
    return fp8 && ((*fp8).*format).granularity == kRow && ops::padded_k(k, kRow) == k;
  }
  bool dw_in_fp8() const { return fp8 && fp8->dw_in_fp8(); }
  // Of products in forward; what is kept is made as numbers.
  bool writes_input(SavedTensor kept, int64_t k) const { return !is_kept(kept) && by_rows(k, &Fp8Recipe::x); }
  bool writes_gradient(int64_t k) const { return by_rows(k, &Fp8Recipe::dy); }
  bool rope_writes_gradient() const {  // unless something else comes behind it
    return writes_gradient(heads.cols()) && run_spec.model.qk_norm == model::QkNorm::None &&
           !spec[Param::QkvBias].present();
  }
  bool swiglu_writes_ht() const { return writes_gradient(2 * ffn) && dw_in_fp8() && !is_kept(SavedTensor::Hidden); }
  ops::Operand product_input(const Context& ctx, SavedTensor kept, int64_t k) const {
    return is_kept(kept) ? ops::Operand(ctx.empty({tokens, k})) : ops::forward_input(ctx, tokens, k);
  }
  double number_bytes(int64_t k) const {  // of [T, k] in the compute type
    return static_cast<double>(tokens * k) * static_cast<double>(size_of(run_spec.precision.compute));
  }
  double input_bytes(SavedTensor kept, int64_t k) const {
    return writes_input(kept, k) ? fp8_bytes(tokens, k, fp8->x) : number_bytes(k);
  }
  double gradient_bytes(int64_t k) const {
    return writes_gradient(k) ? fp8_bytes(tokens, k, fp8->dy) : number_bytes(k);
  }

  // --- norms ---------------------------------------------------------------------------------------------------------
  PreparedOp rms_norm(Workbench& b, Param norm, SavedTensor k, SavedTensor n, bool again) const {
    const Tensor x = b.numbers({tokens, hidden}), w = weight(b, norm), rstd = b.zeros(DType::F32, {tokens});
    const Quantized keep = again || is_kept(k) ? out(b, k) : Quantized{};
    return {[=, this](const Context& ctx) {
              ops::rms_norm_into(ctx, x, w, eps, keep, rstd, product_input(ctx, n, hidden));
            },
            bytes_of(x, w, keep, rstd) + input_bytes(n, hidden)};
  }
  PreparedOp recompute_rms_norm(Workbench& b, Param norm, SavedTensor k) const {
    const Tensor w = weight(b, norm), rstd = b.numbers(DType::F32, {tokens});
    const Quantized kept = codes(b, k);
    const double read = bytes_of(kept, rstd, w);
    if (!dw_in_fp8())
      return {[=](const Context& ctx) { ops::recompute_rms_norm(ctx, kept, rstd, w); }, read + number_bytes(hidden)};
    return {
        [=, format = fp8->dw_x](const Context& ctx) { ops::recompute_rms_norm_transposed(ctx, kept, rstd, w, format); },
        read + fp8_bytes(hidden, tokens, fp8->dw_x)};
  }
  PreparedOp rms_norm_backward(Workbench& b, Param norm, SavedTensor k) const {
    const Tensor dn = b.numbers({tokens, hidden}), dx = b.numbers({tokens, hidden});
    const Tensor w = weight(b, norm), rstd = b.numbers(DType::F32, {tokens});
    const Quantized kept = codes(b, k);
    const ops::MainGrad dw = grad(b, norm);
    const bool rows = writes_gradient(hidden);
    const ops::Operand dx_rows = rows ? b.out(fp8->dy, tokens, hidden) : ops::Operand{};
    return {[=](const Context& ctx) { ops::rms_norm_backward_into(ctx, dn, kept, rstd, w, dx, dx, dw, dx_rows); },
            bytes_of(dn, kept, rstd, w) + 2 * bytes_of(dx, dw.data) + (rows ? gradient_bytes(hidden) : 0)};
  }

  // --- operands that no other op writes ------------------------------------------------------------------------------
  PreparedOp cast(Workbench& b, int64_t rows, int64_t cols, ops::Major major, OperandFormat format) const {
    return prepare_cast(b, rows, cols, major, format);
  }
  // Of forward: it leaves the scales of backward, unless they belong to blocks or to all of it.
  PreparedOp cast_weight(Workbench& b, Param p) const {
    const int64_t rows = spec[p].rows, cols = spec[p].cols;
    if (fp8->w.granularity != ops::Granularity::Row) return prepare_cast(b, rows, cols, ops::Major::K, fp8->w);
    const Tensor w = weight(b, p), scale = b.zeros(DType::F32, {cols});
    const ops::Operand codes = b.out(fp8->w, rows, cols);
    return {[=](const Context& ctx) { ops::weight_to_fp8_into(ctx, w, codes, scale); },
            bytes_of(w, scale) + fp8_bytes(rows, cols, fp8->w)};
  }
  // Of backward: with the scales that forward has left, unless they belong to blocks.
  PreparedOp cast_weight_transposed(Workbench& b, Param p) const {
    const ops::Granularity granularity = fp8->w.granularity;
    if (granularity == ops::Granularity::Block1x128 || granularity == ops::Granularity::Block128x128)
      return prepare_cast(b, spec[p].rows, spec[p].cols, ops::Major::MN, fp8->w);
    const Tensor w = weight(b, p);
    const ops::Operand wt = b.out(fp8->w, spec[p].cols, spec[p].rows);
    ops::to_fp8_transposed_into(b.ctx(), w, wt);
    return {[=](const Context& ctx) { ops::to_fp8_transposed_with(ctx, w, wt); },
            bytes_of(w) + fp8_bytes(spec[p].cols, spec[p].rows, fp8->w)};
  }
  // Of 8-bit floats by rows.
  PreparedOp turn_gradient(Workbench& b, Param p) const {
    const int64_t k = spec[p].rows;
    const ops::Operand dy = b.codes(fp8->dy, tokens, k), dyt = b.out(fp8->dw_dy, k, tokens);
    return {[=](const Context& ctx) { ops::to_fp8_transposed_into(ctx, dy, dyt); },
            gradient_bytes(k) + fp8_bytes(k, tokens, fp8->dw_dy)};
  }

  // --- matrix products -----------------------------------------------------------------------------------------------
  PreparedOp linear(Workbench& b, Param p) const {
    if (fp8) return prepare(b, {tokens, spec[p].rows, spec[p].cols, fp8->x, fp8->w, fp8->forward});
    const Tensor x = b.numbers({tokens, spec[p].cols}), w = weight(b, p), y = b.zeros(x.dtype, {tokens, spec[p].rows});
    return {[=](const Context& ctx) { ops::linear_into(ctx, x, w, {}, y); }, 0, product_flops(p)};
  }
  PreparedOp linear_add(Workbench& b, Param p) const {
    if (fp8) return prepare(b, {tokens, spec[p].rows, spec[p].cols, fp8->x, fp8->w, fp8->forward, 1});
    const Tensor x = b.numbers({tokens, spec[p].cols}), w = weight(b, p), y = b.zeros(x.dtype, {tokens, spec[p].rows});
    return {[=](const Context& ctx) { ops::linear_add(ctx, x, w, y); }, 0, product_flops(p)};
  }
  PreparedOp linear_dx(Workbench& b, Param p) const {
    if (fp8) return prepare(b, {tokens, spec[p].cols, spec[p].rows, fp8->dy, fp8->w, fp8->dx});
    const Tensor dy = b.numbers({tokens, spec[p].rows}), w = weight(b, p);
    return {[=](const Context& ctx) { ops::linear_dx(ctx, dy, w); }, 0, product_flops(p)};
  }
  PreparedOp accumulate_dw(Workbench& b, Param p) const {
    const ops::MainGrad dw = grad(b, p);
    if (dw_in_fp8()) {
      const ops::Operand dyt = b.codes(fp8->dw_dy, spec[p].rows, tokens), xt = b.codes(fp8->dw_x, spec[p].cols, tokens);
      return {[=, sums = fp8->dw](const Context& ctx) { ops::accumulate_dw(ctx, dw, dyt, xt, sums); }, 0,
              product_flops(p)};
    }
    const Tensor dy = b.numbers({tokens, spec[p].rows}), x = b.numbers({tokens, spec[p].cols});
    return {[=](const Context& ctx) { ops::accumulate_dw(ctx, dw, dy, x); }, 0, product_flops(p)};
  }
  PreparedOp dw_alone(Workbench& b, Param p) const {
    if (dw_in_fp8()) return prepare(b, {spec[p].rows, spec[p].cols, tokens, fp8->dw_dy, fp8->dw_x, fp8->dw});
    const Tensor dy = b.numbers({tokens, spec[p].rows}), x = b.numbers({tokens, spec[p].cols});
    const Tensor dw = b.zeros(x.dtype, {spec[p].rows, spec[p].cols});
    return {[=](const Context& ctx) { ops::gemm(ctx, ops::transposed(dy), ops::transposed(x), dw); }, 0,
            product_flops(p)};
  }
  PreparedOp accumulate(Workbench& b, Param p, bool fresh) const {
    const Tensor delta = b.numbers({spec[p].rows, spec[p].cols});
    ops::MainGrad dw = grad(b, p);
    dw.fresh = fresh;
    return {[=](const Context& ctx) { ops::accumulate(ctx, dw, delta); },
            bytes_of(delta) + (fresh ? 1 : 2) * bytes_of(dw.data)};
  }

  // --- attention and MLP ---------------------------------------------------------------------------------------------
  Tensor qkv(const Workbench& b) const { return b.numbers({tokens, heads.cols()}); }
  PreparedOp rope(Workbench& b, bool backward) const {
    const Tensor x = qkv(b), table = b.rope_table(run_spec.model.rope, run_spec.sequence_length);
    if (backward && rope_writes_gradient())
      return {[=, h = heads](const Context& ctx) { ops::rope_backward_input(ctx, x, h, table); },
              bytes_of(x, table) + gradient_bytes(heads.cols())};
    const auto turn = backward ? ops::rope_backward : ops::rope;
    const double rotated = static_cast<double>(heads.v_begin()) / static_cast<double>(heads.cols());
    return {[=, h = heads](const Context& ctx) { turn(ctx, x, h, table); },
            2 * rotated * bytes_of(x) + bytes_of(table)};
  }
  PreparedOp attend(Workbench& b) const {
    const Tensor x = qkv(b), lse = b.zeros(DType::F32, {heads.query, tokens});
    return {[=, a = attention](const Context& ctx) { ops::attention(ctx, x, a, lse); }, 0, attention_flops()};
  }
  PreparedOp attend_backward(Workbench& b) const {
    const Tensor x = qkv(b), d_o = b.numbers({tokens, heads.q_cols()}), o = b.numbers(d_o.shape);
    const Tensor lse = b.zeros(DType::F32, {heads.query, tokens});
    Scope scope(b.ctx());
    ops::attention(b.ctx(), x, attention, lse);
    return {[=, a = attention](const Context& ctx) { ops::attention_backward(ctx, d_o, x, o, lse, a); }, 0,
            2 * attention_flops()};
  }
  PreparedOp swiglu(Workbench& b, bool again) const {
    const Tensor gate_up = b.numbers({tokens, 2 * ffn});
    const Quantized keep = again || is_kept(SavedTensor::GateUp) ? out(b, SavedTensor::GateUp) : Quantized{};
    const Quantized keep_h = is_kept(SavedTensor::Hidden) ? out(b, SavedTensor::Hidden) : Quantized{};
    return {[=, this](const Context& ctx) {
              ops::swiglu_into(ctx, gate_up, keep, keep_h, product_input(ctx, SavedTensor::Hidden, ffn));
            },
            bytes_of(gate_up, keep, keep_h) + input_bytes(SavedTensor::Hidden, ffn)};
  }
  PreparedOp swiglu_backward(Workbench& b) const {
    const Tensor dh = b.numbers({tokens, ffn});
    const Quantized kept = codes(b, SavedTensor::GateUp), kept_h = codes_if_kept(b, SavedTensor::Hidden);
    const double ht = swiglu_writes_ht() ? fp8_bytes(ffn, tokens, fp8->dw_x) : number_bytes(ffn);
    return {[=](const Context& ctx) { ops::swiglu_backward_operands(ctx, dh, kept, kept_h); },
            bytes_of(dh, kept, kept_h) + gradient_bytes(2 * ffn) + ht};
  }

  // --- codes by themselves -------------------------------------------------------------------------------------------
  PreparedOp encode(const Workbench& b, const Quantized& q, bool stochastic) const {
    const Tensor x = b.numbers({tokens, q.row.cols});
    const codec::Rounding rounding = stochastic ? codec::Rounding::random({}) : codec::Rounding::nearest();
    return {[=](const Context& ctx) { codec::encode(ctx, x, q, rounding); }, bytes_of(x, q)};
  }
  PreparedOp decode(const Workbench& b, const Quantized& q) const {
    const Tensor x = b.zeros(run_spec.precision.compute, {tokens, q.row.cols});
    return {[=](const Context& ctx) { codec::decode(ctx, q, x); }, bytes_of(x, q)};
  }
  PreparedOp keep(Workbench& b, SavedTensor k) const { return encode(b, out(b, k), false); }
  PreparedOp load(Workbench& b, SavedTensor k) const { return decode(b, codes(b, k)); }
  PreparedOp encode_stream(Workbench& b, Codec codec, bool stochastic) const {
    return encode(b, b.out(codec, tokens, codec::RowBlocks(hidden)), stochastic);
  }
  PreparedOp decode_stream(Workbench& b, Codec codec) const {
    return decode(b, b.codes(codec, tokens, codec::RowBlocks(hidden)));
  }

  // --- optimizer -----------------------------------------------------------------------------------------------------
  PreparedOp squared_norms(Workbench& b) const {
    const auto layer = std::make_shared<OneLayer>(b, run_spec);
    std::vector<ops::GradientSum> grads;
    PreparedOp work;
    for (const ops::AdamWState& state : layer->states()) {
      grads.push_back(state.grad);
      work.bytes += bytes_of(state.grad.first);
    }
    const Tensor squares = b.zeros(DType::F32, {static_cast<int64_t>(grads.size())});
    work.run = [=](const Context& ctx) { ops::squared_norms(ctx, grads, squares); };
    return work;
  }
  PreparedOp adamw(Workbench& b) const {
    const auto layer = std::make_shared<OneLayer>(b, run_spec);
    const std::vector<ops::AdamWState> states = layer->states();
    const Tensor scalars = b.zeros(DType::U8, ops::update_scalars_shape());
    const ops::AdamWConfig config;
    ops::decide_update(b.ctx(), b.zeros(DType::F32, {1}), kSmallRate, config, scalars);
    PreparedOp work;
    for (const ops::AdamWState& s : states) {
      const ops::Weight& w = s.weight;
      work.bytes += bytes_of(s.grad.first) + 2 * bytes_of(s.m, s.v, w.correction, w.master);
      work.bytes += (w.master ? 1 : 2) * bytes_of(w.value);  // beside a master it is only written
    }
    work.run = [=, owner = layer](const Context& ctx) { ops::adamw(ctx, states, kSmallRate, config, scalars); };
    return work;
  }

  // --- ends of the model ---------------------------------------------------------------------------------------------
  PreparedOp embed(Workbench& b) const {
    const Tensor ids = b.integers(tokens, run_spec.model.vocab_size);
    const ops::Weight w{weight(b, Param::Embedding), {}, {}};
    return {[=](const Context& ctx) { ops::embedding(ctx, ids, w); }, bytes_of(ids) + 2 * number_bytes(hidden)};
  }
  PreparedOp embed_backward(Workbench& b) const {
    const Tensor ids = b.integers(tokens, run_spec.model.vocab_size), dx = b.numbers({tokens, hidden});
    const ops::MainGrad dw = grad(b, Param::Embedding);
    const auto rows = static_cast<double>(run_spec.model.vocab_size);  // of which random tokens touch a share
    const double touched = 1 - std::pow(1 - 1 / rows, static_cast<double>(tokens));
    return {[=](const Context& ctx) { ops::embedding_backward(ctx, ids, dx, dw); },
            bytes_of(ids, dx) + 2 * touched * bytes_of(dw.data)};
  }
  PreparedOp head(Workbench& b) const {
    const Tensor n = b.numbers({tokens, hidden}), w = b.numbers({run_spec.model.vocab_size, hidden});
    const ops::Targets targets{b.integers(tokens, run_spec.model.vocab_size), b.zeros(DType::F32, {tokens})};
    b.fill(targets.weights);
    const Tensor nll = b.zeros(DType::F32, {tokens});
    const ops::MainGrad dw = grad(b, Param::Embedding);
    return {[=](const Context& ctx) { ops::head_loss_backward(ctx, n, w, targets, 1e-4f, nll, dw); }, 0,
            6 * static_cast<double>(tokens * hidden) * static_cast<double>(run_spec.model.vocab_size)};
  }
};

class OpTable {
 public:
  explicit OpTable(const parallel::RunSpec& run_spec) : setting_(std::make_shared<OpSetting>(run_spec)) {}
  const OpSetting& setting() const { return *setting_; }

  // `make` is a function of Setting, called with `arguments` when the op is to be measured. What a layer does sees the
  // Fp8Recipe as there.
  template <class... Parameters, class... Arguments>
  void add(OpPhase part, const std::string& name, PreparedOp (OpSetting::*make)(Workbench&, Parameters...) const,
           Arguments... arguments) {
    const bool in_layer = part == OpPhase::Forward || part == OpPhase::Backward;
    ops.push_back({name, part, [=, s = setting_](Workbench& b) {
                     PreparedOp op = ((*s).*make)(b, arguments...);
                     op.run = [s, in_layer, run = std::move(op.run)](const Context& ctx) {
                       Context own = ctx;
                       own.fp8 = in_layer && s->fp8 ? &*s->fp8 : nullptr;
                       run(own);
                     };
                     return op;
                   }});
  }
  std::vector<Op> ops;

 private:
  std::shared_ptr<const OpSetting> setting_;
};

// What y = x·wᵀ does beside its product.
void add_operands_of_linear(OpTable& t, OpPhase part, Param p, bool x_written) {
  const OpSetting& s = t.setting();
  if (!s.fp8) return;
  const auto& w = s.spec[p];
  if (!x_written)
    t.add(part, fmt::format("to_fp8 x {}", w.name), &OpSetting::cast, s.tokens, w.cols, ops::Major::K, s.fp8->x);
  t.add(part, fmt::format("to_fp8 w {}", w.name), &OpSetting::cast_weight, p);
}

// The same of dx = dy·w.
void add_operands_of_dx(OpTable& t, Param p, bool dy_written) {
  const OpSetting& s = t.setting();
  if (!s.fp8) return;
  const auto& w = s.spec[p];
  if (!dy_written)
    t.add(OpPhase::Backward, fmt::format("to_fp8 dy {}", w.name), &OpSetting::cast, s.tokens, w.rows, ops::Major::K,
          s.fp8->dy);
  t.add(OpPhase::Backward, fmt::format("to_fp8_transposed w {}", w.name), &OpSetting::cast_weight_transposed, p);
}

// The same of dW = dyᵀ·x. Rows of 8-bit floats are turned as they are.
void add_operands_of_dw(OpTable& t, Param p, bool x_written) {
  const OpSetting& s = t.setting();
  if (!s.dw_in_fp8()) return;
  const auto& w = s.spec[p];
  const std::string dy = fmt::format("to_fp8_transposed dy {}", w.name);
  if (s.writes_gradient(w.rows))
    t.add(OpPhase::Backward, dy, &OpSetting::turn_gradient, p);
  else
    t.add(OpPhase::Backward, dy, &OpSetting::cast, s.tokens, w.rows, ops::Major::MN, s.fp8->dw_dy);
  if (!x_written)
    t.add(OpPhase::Backward, fmt::format("to_fp8_transposed x {}", w.name), &OpSetting::cast, s.tokens, w.cols,
          ops::Major::MN, s.fp8->dw_x);
}

// In backward it runs again, and keeps all that is needed there, exact.
void add_forward(OpTable& t, OpPhase part) {
  const OpSetting& s = t.setting();
  const bool again = part == OpPhase::Backward;
  t.add(part, "rms_norm x1", &OpSetting::rms_norm, Param::AttentionNorm, SavedTensor::X1, SavedTensor::N1, again);
  if (s.is_kept(SavedTensor::N1)) t.add(part, "keep n1", &OpSetting::keep, SavedTensor::N1);
  add_operands_of_linear(t, part, Param::Qkv, s.writes_input(SavedTensor::N1, s.hidden));
  t.add(part, "linear qkv", &OpSetting::linear, Param::Qkv);
  t.add(part, "rope", &OpSetting::rope, false);  // what stays plain of q, k, v and o is written in its place
  if (has_scales(s.codec_of(SavedTensor::Qkv))) t.add(part, "keep qkv", &OpSetting::keep, SavedTensor::Qkv);
  t.add(part, "attention", &OpSetting::attend);
  if (has_scales(s.codec_of(SavedTensor::O))) t.add(part, "keep o", &OpSetting::keep, SavedTensor::O);
  add_operands_of_linear(t, part, Param::Out, false);
  t.add(part, "linear out", &OpSetting::linear_add, Param::Out);
  t.add(part, "rms_norm x2", &OpSetting::rms_norm, Param::MlpNorm, SavedTensor::X2, SavedTensor::N2, again);
  if (s.is_kept(SavedTensor::N2)) t.add(part, "keep n2", &OpSetting::keep, SavedTensor::N2);
  add_operands_of_linear(t, part, Param::GateUp, s.writes_input(SavedTensor::N2, s.hidden));
  t.add(part, "linear gate_up", &OpSetting::linear, Param::GateUp);
  t.add(part, "swiglu", &OpSetting::swiglu, again);
  add_operands_of_linear(t, part, Param::Down, s.writes_input(SavedTensor::Hidden, s.ffn));
  t.add(part, "linear down", &OpSetting::linear_add, Param::Down);
}

// The input of a product: made again from its norm's input, or read.
void add_norm_output(OpTable& t, SavedTensor n, Param norm, SavedTensor x) {
  const OpSetting& s = t.setting();
  if (!s.is_kept(n))
    return t.add(OpPhase::Backward, fmt::format("recompute_rms_norm {}", s.spec[x].name),
                 &OpSetting::recompute_rms_norm, norm, x);
  if (has_scales(s.codec_of(n))) t.add(OpPhase::Backward, fmt::format("load {}", s.spec[n].name), &OpSetting::load, n);
}

void add_backward(OpTable& t) {
  const OpSetting& s = t.setting();
  constexpr OpPhase kPhase = OpPhase::Backward;
  add_operands_of_dx(t, Param::Down, s.writes_gradient(s.hidden));
  t.add(kPhase, "linear_dx down", &OpSetting::linear_dx, Param::Down);
  t.add(kPhase, "swiglu_backward", &OpSetting::swiglu_backward);
  add_operands_of_dw(t, Param::Down, s.swiglu_writes_ht());
  t.add(kPhase, "accumulate_dw down", &OpSetting::accumulate_dw, Param::Down);
  add_norm_output(t, SavedTensor::N2, Param::MlpNorm, SavedTensor::X2);
  add_operands_of_dw(t, Param::GateUp, !s.is_kept(SavedTensor::N2));
  t.add(kPhase, "accumulate_dw gate_up", &OpSetting::accumulate_dw, Param::GateUp);
  add_operands_of_dx(t, Param::GateUp, s.writes_gradient(2 * s.ffn));
  t.add(kPhase, "linear_dx gate_up", &OpSetting::linear_dx, Param::GateUp);
  t.add(kPhase, "rms_norm_backward x2", &OpSetting::rms_norm_backward, Param::MlpNorm, SavedTensor::X2);
  for (const SavedTensor k : {SavedTensor::Qkv, SavedTensor::O})
    if (has_scales(s.codec_of(k))) t.add(kPhase, fmt::format("load {}", s.spec[k].name), &OpSetting::load, k);
  const bool recompute_all = s.run_spec.recipe.recompute == model::Recompute::Full;
  if (!recompute_all && !s.is_kept(SavedTensor::O)) t.add(kPhase, "recompute attention", &OpSetting::attend);
  add_operands_of_dx(t, Param::Out, s.writes_gradient(s.hidden));
  t.add(kPhase, "linear_dx out", &OpSetting::linear_dx, Param::Out);
  add_operands_of_dw(t, Param::Out, false);
  t.add(kPhase, "accumulate_dw out", &OpSetting::accumulate_dw, Param::Out);
  t.add(kPhase, "attention_backward", &OpSetting::attend_backward);
  t.add(kPhase, "rope_backward", &OpSetting::rope, true);
  const int64_t qkv = s.spec[Param::Qkv].rows;
  if (s.writes_gradient(qkv) && !s.rope_writes_gradient())
    t.add(kPhase, "to_fp8 dy qkv", &OpSetting::cast, s.tokens, qkv, ops::Major::K, s.fp8->dy);
  add_norm_output(t, SavedTensor::N1, Param::AttentionNorm, SavedTensor::X1);
  add_operands_of_dw(t, Param::Qkv, !s.is_kept(SavedTensor::N1));
  t.add(kPhase, "accumulate_dw qkv", &OpSetting::accumulate_dw, Param::Qkv);
  add_operands_of_dx(t, Param::Qkv, s.writes_gradient(qkv));
  t.add(kPhase, "linear_dx qkv", &OpSetting::linear_dx, Param::Qkv);
  t.add(kPhase, "rms_norm_backward x1", &OpSetting::rms_norm_backward, Param::AttentionNorm, SavedTensor::X1);
}

}  // namespace

std::string_view name_of(OpPhase part) {
  constexpr std::string_view kNames[] = {"forward", "backward", "optimizer", "ends", "alone"};
  return kNames[static_cast<size_t>(part)];
}

std::vector<Op> layer_ops(const parallel::RunSpec& run_spec) {
  const model::ModelConfig& model = run_spec.model;
  require(!model.layer_norm && !model.post_norm,
          "the ops of a layer are those of one with an RMSNorm in front, which {} has not; bench layer and bench step "
          "time any model",
          model.model_type);
  OpTable t(run_spec);
  add_forward(t, OpPhase::Forward);
  if (run_spec.recipe.recompute == model::Recompute::Full) add_forward(t, OpPhase::Backward);
  add_backward(t);
  t.add(OpPhase::Optimizer, "squared_norms", &OpSetting::squared_norms);
  t.add(OpPhase::Optimizer, "adamw", &OpSetting::adamw);
  for (const Param p : kMatrices)
    t.add(OpPhase::Alone, fmt::format("dw {}", t.setting().spec[p].name), &OpSetting::dw_alone, p);
  t.add(OpPhase::Alone, "accumulate gate_up", &OpSetting::accumulate, Param::GateUp, false);
  t.add(OpPhase::Alone, "accumulate gate_up, fresh", &OpSetting::accumulate, Param::GateUp, true);
  return t.ops;
}

std::vector<Op> end_ops(const parallel::RunSpec& run_spec) {
  OpTable t(run_spec);
  t.add(OpPhase::Ends, "embedding", &OpSetting::embed);
  t.add(OpPhase::Ends, "head_loss_backward", &OpSetting::head);
  const OpSetting& s = t.setting();
  if (s.writes_gradient(s.hidden) && !run_spec.model.post_norm)
    t.add(OpPhase::Ends, "to_fp8 dx", &OpSetting::cast, s.tokens, s.hidden, ops::Major::K, s.fp8->dy);
  t.add(OpPhase::Ends, "embedding_backward", &OpSetting::embed_backward);
  return t.ops;
}

std::vector<Op> ceiling_ops(const parallel::RunSpec& run_spec) {
  OpTable t(run_spec);
  for (const Param p : kMatrices) {
    t.add(OpPhase::Alone, "linear", &OpSetting::linear, p);
    t.add(OpPhase::Alone, "linear_dx", &OpSetting::linear_dx, p);
    t.add(OpPhase::Alone, "dw", &OpSetting::dw_alone, p);
  }
  t.add(OpPhase::Alone, "attention", &OpSetting::attend);
  t.add(OpPhase::Alone, "attention_backward", &OpSetting::attend_backward);
  return t.ops;
}

std::string_view ceiling_name(const parallel::RunSpec& run_spec) {
  return run_spec.precision.fp8.recipe ? "products in 8-bit floats and attention of a layer"
                                       : "matrix products and attention of a layer";
}

std::vector<Op> codec_ops(const parallel::RunSpec& run_spec) {
  OpTable t(run_spec);
  for (const Codec codec : {Codec::Bf16, Codec::Fp8, Codec::Int8, Codec::Fp6, Codec::Fp5, Codec::Fp4, Codec::Nf4,
                            Codec::Int4, Codec::Dyn8, Codec::Dyn8Unsigned}) {
    t.add(OpPhase::Alone, fmt::format("encode {}", name_of(codec)), &OpSetting::encode_stream, codec, false);
    t.add(OpPhase::Alone, fmt::format("encode {}, stochastic", name_of(codec)), &OpSetting::encode_stream, codec, true);
    t.add(OpPhase::Alone, fmt::format("decode {}", name_of(codec)), &OpSetting::decode_stream, codec);
  }
  return t.ops;
}

}  // namespace agoq::bench
