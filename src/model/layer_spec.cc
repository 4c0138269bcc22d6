#include "model/layer_spec.h"

#include <numeric>

namespace agoq::model {
namespace {

// Rows that can be cut over the tensor axis are divided in 8 equal segments; sizes that 8 does not divide get fewer.
int64_t cut_segment(int64_t cols) {
  return cols / std::gcd(cols, int64_t{8});
}

}  // namespace

LayerSpec::LayerSpec(const ModelConfig& c) {
  const int64_t hidden = c.hidden_size, ffn = c.ffn_size, vocab = c.vocab_size;
  const ops::Heads& heads = c.heads;
  const int64_t q = heads.q_cols(), kv = heads.kv_cols(), d = heads.dim;
  const int64_t bias_rows = c.qkv_bias ? 1 : 0, qk_norm_rows = c.qk_norm ? 1 : 0;
  const int64_t norm_rows = c.layer_norm ? 0 : 1;
  const int64_t head_rows = c.tied_embeddings ? 0 : vocab;
  const Reduction embedding_group = c.tied_embeddings ? Reduction::DataAndEnds : Reduction::Data;
  const int64_t out_segment = cut_segment(q), down_segment = cut_segment(ffn);

  using enum Param;
  // clang-format off
  params = {{
      {Embedding, "embedding", vocab, hidden, hidden, Cut::Rows, embedding_group, false, Init::Normal, {{"model.embed_tokens.weight", vocab}}},
      {AttentionNorm, "attention_norm", norm_rows, hidden, hidden, Cut::None, Reduction::DataAndTensor, false, Init::Ones, {{"input_layernorm.weight", hidden}}},
      {Qkv, "qkv", heads.cols(), hidden, hidden, Cut::Rows, Reduction::Data, true, Init::Normal, {{"self_attn.q_proj.weight", q}, {"self_attn.k_proj.weight", kv}, {"self_attn.v_proj.weight", kv}}},
      {QkvBias, "qkv_bias", bias_rows, heads.cols(), heads.cols(), Cut::Columns, Reduction::Data, false, Init::Zeros, {{"self_attn.q_proj.bias", q}, {"self_attn.k_proj.bias", kv}, {"self_attn.v_proj.bias", kv}}},
      {QNorm, "q_norm", qk_norm_rows, d, d, Cut::None, Reduction::DataAndTensor, false, Init::Ones, {{"self_attn.q_norm.weight", d}}},
      {KNorm, "k_norm", qk_norm_rows, d, d, Cut::None, Reduction::DataAndTensor, false, Init::Ones, {{"self_attn.k_norm.weight", d}}},
      {Out, "out", hidden, q, out_segment, Cut::Columns, Reduction::Data, true, Init::ResidualNormal, {{"self_attn.o_proj.weight", hidden}}},
      {MlpNorm, "mlp_norm", norm_rows, hidden, hidden, Cut::None, Reduction::DataAndTensor, false, Init::Ones, {{"post_attention_layernorm.weight", hidden}}},
      {GateUp, "gate_up", 2 * ffn, hidden, hidden, Cut::Rows, Reduction::Data, true, Init::Normal, {{"mlp.gate_proj.weight", ffn}, {"mlp.up_proj.weight", ffn}}},
      {Down, "down", hidden, ffn, down_segment, Cut::Columns, Reduction::Data, true, Init::ResidualNormal, {{"mlp.down_proj.weight", hidden}}},
      {FinalNorm, "final_norm", norm_rows, hidden, hidden, Cut::None, Reduction::DataAndTensor, false, Init::Ones, {{"model.norm.weight", hidden}}},
      {Head, "head", head_rows, hidden, hidden, Cut::Rows, Reduction::Data, true, Init::Normal, {{"lm_head.weight", vocab}}},
  }};
  // clang-format on

  const int64_t qk_heads = c.qk_norm ? heads.query + heads.kv : 0;
  kept = {{
      {Kept::X1, "x1", hidden, hidden, KeptGroup::Norm},
      {Kept::Rstd1, "rstd1", 1, 1, KeptGroup::Stat},
      {Kept::N1, "n1", hidden, hidden, KeptGroup::GemmInput},
      {Kept::Qkv, "qkv", heads.cols(), d, KeptGroup::Attention},  // a head is never cut: one segment each
      {Kept::QkRstd, "qk_rstd", qk_heads, qk_heads, KeptGroup::Stat},
      {Kept::O, "o", q, d, KeptGroup::Attention},
      {Kept::Lse, "lse", heads.query, heads.query, KeptGroup::Stat},
      {Kept::X2, "x2", hidden, hidden, KeptGroup::Norm},
      {Kept::Rstd2, "rstd2", 1, 1, KeptGroup::Stat},
      {Kept::N2, "n2", hidden, hidden, KeptGroup::GemmInput},
      {Kept::GateUp, "gate_up", 2 * ffn, down_segment, KeptGroup::Mlp},
      {Kept::Hidden, "h", ffn, down_segment, KeptGroup::GemmInput},
  }};
}

std::vector<ParamId> all_params(const ModelConfig& config, const LayerSpec& spec) {
  std::vector<ParamId> ids = {{-1, Param::Embedding}};
  for (int64_t layer = 0; layer < config.layers; ++layer)
    for (const ParamRow& row : spec.params)
      if (in_layer(row.param) && row.present()) ids.push_back({layer, row.param});
  for (const Param p : {Param::FinalNorm, Param::Head})
    if (spec[p].present()) ids.push_back({-1, p});
  return ids;
}

std::string logical_name(const LayerSpec& spec, const ParamId& id) {
  const std::string_view name = spec[id.param].name;
  return id.layer < 0 ? std::string(name) : fmt::format("layers.{}.{}", id.layer, name);
}

std::string hf_name(const HfPart& part, const ParamId& id) {
  return id.layer < 0 ? part.name : fmt::format("model.layers.{}.{}", id.layer, part.name);
}

}  // namespace agoq::model
