#include "model/layer_spec.h"

#include <algorithm>
#include <numeric>

#include "ops/sequence_parallel.h"

namespace agoq::model {
namespace {

// Rows that can be cut over the tensor axis are divided in 8 equal segments; sizes that 8 does not divide get fewer.
int64_t cut_segment(int64_t cols) {
  return cols / std::gcd(cols, int64_t{8});
}

// The sizes of the tensor axis for which no head, block or row of the vocabulary falls apart.
bool divides(const ModelConfig& c, int size) {
  return c.heads.query % size == 0 && c.heads.kv % size == 0 && c.ffn_size % size == 0 && c.vocab_size >= size;
}

void check(const ModelConfig& c, const TensorShard& shard) {
  std::vector<int> valid;
  for (const int size : {1, 2, 4, 8})
    if (divides(c, size)) valid.push_back(size);
  require(
      std::find(valid.begin(), valid.end(), shard.size) != valid.end(),
      "a tensor-parallel size of {} cannot divide {} query heads, {} key/value heads, a feed-forward size of {} and "
      "a vocabulary of {}; use {}",
      shard.size, c.heads.query, c.heads.kv, c.ffn_size, c.vocab_size, fmt::join(valid, ", "));
  require(shard.rank >= 0 && shard.rank < shard.size, "there is no rank {} of {} in a tensor-parallel group",
          shard.rank, shard.size);
}

// From the logical parameter to one rank's shard of it. Each part of a fused parameter is cut by itself.
void cut_over_tensor_axis(ParamRow& row, const TensorShard& shard) {
  row.logical_rows = row.rows;
  row.logical_cols = row.cols;
  if (!row.present()) return;
  int64_t local = 0, global = 0;
  for (const HfPart& part : row.parts) {
    const Range own = row.cut == Cut::Rows ? part_of(part.extent, shard) : Range{0, part.extent};
    row.pieces.push_back({local, global + own.begin, own.count()});
    local += own.count();
    global += part.extent;
  }
  if (row.one_dimensional()) {
    row.cols = row.segment = local;
  } else if (row.cut == Cut::Rows) {
    row.rows = local;
  } else if (row.cut == Cut::Columns) {
    const Range own = part_of(row.cols, shard);
    row.first_col = own.begin;
    row.cols = own.count();
  }
}

}  // namespace

LayerSpec::LayerSpec(const ModelConfig& c, TensorShard tensor_shard) : shard(tensor_shard) {
  check(c, shard);
  const int64_t hidden = c.hidden_size, ffn = c.ffn_size, vocab = c.vocab_size;
  const ops::Heads& all_heads = c.heads;
  const int64_t qkv = all_heads.cols(), q = all_heads.q_cols(), kv = all_heads.kv_cols(), d = all_heads.dim;
  const int64_t bias_rows = c.qkv_bias ? 1 : 0, qk_norm_rows = c.qk_norm != QkNorm::None ? 1 : 0;
  const int64_t norm_rows = c.layer_norm ? 0 : 1;
  const char* const attention_norm = c.post_norm ? "post_attention_layernorm.weight" : "input_layernorm.weight";
  const char* const mlp_norm = c.post_norm ? "post_feedforward_layernorm.weight" : "post_attention_layernorm.weight";
  // Weights of a norm over each head serve all heads; those of a norm over all heads are cut as the heads are.
  const bool wide = c.qk_norm == QkNorm::Wide;
  const int64_t q_weights = wide ? q : d, k_weights = wide ? kv : d;
  const Cut qk_cut = wide ? Cut::Rows : Cut::None;
  const Reduction qk_group = wide ? Reduction::Data : Reduction::DataAndTensor;
  const int64_t head_rows = c.tied_embeddings ? 0 : vocab;
  const Reduction embedding_group = c.tied_embeddings ? Reduction::DataAndEnds : Reduction::Data;
  const int64_t out_segment = cut_segment(q), down_segment = cut_segment(ffn);

  using enum Param;
  // clang-format off
  params = {{
      {Embedding, "embedding", vocab, hidden, hidden, Cut::Rows, embedding_group, false, Init::Normal, {{"model.embed_tokens.weight", vocab}}},
      {AttentionNorm, "attention_norm", norm_rows, hidden, hidden, Cut::None, Reduction::DataAndTensor, false, Init::Ones, {{attention_norm, hidden}}},
      {Qkv, "qkv", qkv, hidden, hidden, Cut::Rows, Reduction::Data, true, Init::Normal, {{"self_attn.q_proj.weight", q}, {"self_attn.k_proj.weight", kv}, {"self_attn.v_proj.weight", kv}}},
      {QkvBias, "qkv_bias", bias_rows, qkv, qkv, Cut::Rows, Reduction::Data, false, Init::Zeros, {{"self_attn.q_proj.bias", q}, {"self_attn.k_proj.bias", kv}, {"self_attn.v_proj.bias", kv}}},
      {QNorm, "q_norm", qk_norm_rows, q_weights, q_weights, qk_cut, qk_group, false, Init::Ones, {{"self_attn.q_norm.weight", q_weights}}},
      {KNorm, "k_norm", qk_norm_rows, k_weights, k_weights, qk_cut, qk_group, false, Init::Ones, {{"self_attn.k_norm.weight", k_weights}}},
      {Out, "out", hidden, q, out_segment, Cut::Columns, Reduction::Data, true, Init::ResidualNormal, {{"self_attn.o_proj.weight", hidden}}},
      {MlpNorm, "mlp_norm", norm_rows, hidden, hidden, Cut::None, Reduction::DataAndTensor, false, Init::Ones, {{mlp_norm, hidden}}},
      {GateUp, "gate_up", 2 * ffn, hidden, hidden, Cut::Rows, Reduction::Data, true, Init::Normal, {{"mlp.gate_proj.weight", ffn}, {"mlp.up_proj.weight", ffn}}},
      {Down, "down", hidden, ffn, down_segment, Cut::Columns, Reduction::Data, true, Init::ResidualNormal, {{"mlp.down_proj.weight", hidden}}},
      {FinalNorm, "final_norm", norm_rows, hidden, hidden, Cut::None, Reduction::DataAndTensor, false, Init::Ones, {{"model.norm.weight", hidden}}},
      {Head, "head", head_rows, hidden, hidden, Cut::Rows, Reduction::Data, true, Init::Normal, {{"lm_head.weight", vocab}}},
  }};
  // clang-format on

  for (ParamRow& row : params) cut_over_tensor_axis(row, shard);

  vocabulary = part_of(vocab, shard);
  heads = {all_heads.query / shard.size, all_heads.kv / shard.size, d};
  const int64_t own_ffn = ffn / shard.size;
  const int64_t qk_rstds = c.qk_norm == QkNorm::None ? 0 : wide ? 2 : heads.query + heads.kv;  // of a token
  // Products read the residual stream itself where norms come behind them, which then read what products make.
  const int64_t n = c.post_norm ? 0 : hidden, y = c.post_norm ? hidden : 0;
  kept = {{
      {SavedTensor::X1, "x1", hidden, hidden, SavedTensorGroup::Norm, true},
      {SavedTensor::Rstd1, "rstd1", 1, 1, SavedTensorGroup::Stat, true},
      {SavedTensor::N1, "n1", n, n, SavedTensorGroup::GemmInput, true},
      {SavedTensor::Qkv, "qkv", heads.cols(), d, SavedTensorGroup::Attention},  // a head is never cut: one segment each
      {SavedTensor::QkRstd, "qk_rstd", qk_rstds, qk_rstds, SavedTensorGroup::Stat},
      {SavedTensor::O, "o", heads.q_cols(), d, SavedTensorGroup::Attention},
      {SavedTensor::Lse, "lse", heads.query, heads.query, SavedTensorGroup::Stat},
      {SavedTensor::Y1, "y1", y, y, SavedTensorGroup::Norm, true},
      {SavedTensor::X2, "x2", hidden, hidden, SavedTensorGroup::Norm, true},
      {SavedTensor::Rstd2, "rstd2", 1, 1, SavedTensorGroup::Stat, true},
      {SavedTensor::N2, "n2", n, n, SavedTensorGroup::GemmInput, true},
      {SavedTensor::GateUp, "gate_up", 2 * own_ffn, down_segment, SavedTensorGroup::Mlp},
      {SavedTensor::Hidden, "h", own_ffn, down_segment, SavedTensorGroup::GemmInput},
      {SavedTensor::Y2, "y2", y, y, SavedTensorGroup::Norm, true},
  }};
}

int64_t LayerSpec::own_tokens(int64_t tokens) const {
  return ops::own_tokens(tokens, shard.size);
}

codec::GlobalOffset ParamRow::global_offset() const {
  codec::GlobalOffset global_offset;
  if (one_dimensional()) return global_offset;
  for (size_t i = 0; i < pieces.size(); ++i) {
    global_offset.begin[i] = pieces[i].local_begin;
    global_offset.shift[i] = pieces[i].global_begin - pieces[i].local_begin;
  }
  const codec::RowBlocks whole(logical_cols, segment);
  global_offset.first_block = first_col / segment * whole.blocks_per_segment();
  global_offset.blocks_per_row = whole.blocks();
  return global_offset;
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
