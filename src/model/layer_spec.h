// One table describes the model and is the only truth: every parameter and every tensor that forward may leave for
// backward, with its shape, how it is cut over the tensor axis, its Hugging Face names, decay, initialisation and
// reduction group. Forward, backward, memory, checkpoints, import and export all read it.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "codec/quantized.h"
#include "model/model_config.h"

namespace agoq::model {

// A new one is the last: its number is in its id, and so in draws.
enum class Param : uint8_t {
  Embedding,
  AttentionNorm,
  Qkv,
  QkvBias,
  QNorm,
  KNorm,
  Out,
  MlpNorm,
  GateUp,
  Down,
  FinalNorm,
  Head,
  Count
};
// What a layer's forward may keep. Stats (rstd, lse) are always fp32; the others follow the recipe.
enum class SavedTensor : uint8_t {
  X1,
  Rstd1,
  N1,
  Qkv,
  QkRstd,
  O,
  Lse,
  Y1,  // o·Woᵀ, where a norm comes behind it
  X2,
  Rstd2,
  N2,
  GateUp,
  Hidden,
  Y2,  // h·Wdownᵀ, likewise
  Count
};

inline constexpr size_t kParams = static_cast<size_t>(Param::Count);
inline constexpr size_t kSavedTensors = static_cast<size_t>(SavedTensor::Count);

enum class Cut : uint8_t { None, Rows, Columns };  // over the tensor axis; elements of a 1-D parameter count as rows
enum class Reduction : uint8_t { Data, DataAndTensor, DataAndEnds };  // which ranks hold partial sums of its gradient
enum class Init : uint8_t { Normal, ResidualNormal, Ones, Zeros };    // ResidualNormal: std / sqrt(2 L)
enum class SavedTensorGroup : uint8_t {
  Stat,
  Norm,  // the residual stream and what norms read
  Attention,
  Mlp,
  GemmInput
};  // what a recipe's override can name at once

// A rank's place on the tensor axis.
struct TensorShard {
  int size = 1, rank = 0;
  bool whole() const { return size == 1; }
  bool operator==(const TensorShard&) const = default;
};

// The part of [0, extent) that belongs to a rank: nearly equal parts, in rank order.
struct Range {
  int64_t begin = 0, end = 0;
  int64_t count() const { return end - begin; }
  bool operator==(const Range&) const = default;
};
inline Range part_of(int64_t extent, const TensorShard& shard) {
  return {extent * shard.rank / shard.size, extent * (shard.rank + 1) / shard.size};
}

// Rows (of a 1-D parameter, elements) that lie together in a rank's shard and in the logical tensor.
struct RowPiece {
  int64_t local_begin = 0, global_begin = 0, count = 0;
};

// A fused parameter is the stack of these Hugging Face tensors: rows of a matrix, elements of a vector.
struct HfPart {
  std::string name;    // "self_attn.q_proj.weight"; of a layer: without "model.layers.N."
  int64_t extent = 0;  // rows, or elements of a 1-D parameter
};

struct ParamRow {
  Param param{};
  std::string_view name;  // "qkv"
  int64_t rows = 0;       // of this rank's shard; 1 for 1-D parameters
  int64_t cols = 0;       // likewise
  int64_t segment = 0;    // of the blocks of its gradient and moments (codec::RowBlocks)
  Cut cut = Cut::None;
  Reduction reduction = Reduction::Data;
  bool decay = true;
  Init init = Init::Normal;
  std::vector<HfPart> parts;  // of the logical tensor
  // Where the shard lies in the logical tensor, which it is itself under a tensor axis of 1.
  int64_t logical_rows = 0, logical_cols = 0;
  std::vector<RowPiece> pieces{};  // one of each part, in their order
  int64_t first_col = 0;
  bool one_dimensional() const { return logical_rows == 1; }
  bool present() const { return rows > 0; }
  int64_t count() const { return rows * cols; }
  codec::RowBlocks blocks() const { return {cols, segment}; }
  codec::GlobalOffset global_offset() const;  // of the shard, for draws
};

struct SavedTensorSpec {
  SavedTensor kept{};
  std::string_view name;  // "x1"
  int64_t cols = 0;       // of this rank, per token; 0: this architecture has none
  int64_t segment = 0;
  SavedTensorGroup group{};
  bool own_tokens = false;  // a rank of the tensor axis holds its part of the tokens (sequence parallel), not all
  bool present() const { return cols > 0; }
};

struct LayerSpec {
  // The shard of one rank of the tensor axis: query and key/value heads, the feed-forward dimension and the vocabulary
  // are cut, norms are whole. A size that the model cannot be cut into is an error that lists those that it can.
  explicit LayerSpec(const ModelConfig& config, TensorShard shard = {});
  // Of T tokens of a micro-batch, those of the residual stream that a rank holds. An error if they cannot be divided.
  int64_t own_tokens(int64_t tokens) const;
  // The rows of a kept tensor that a rank has of them.
  int64_t saved_rows(const SavedTensorSpec& row, int64_t tokens) const {
    return row.own_tokens ? own_tokens(tokens) : tokens;
  }
  const ParamRow& operator[](Param p) const { return params[static_cast<size_t>(p)]; }
  const SavedTensorSpec& operator[](SavedTensor k) const { return kept[static_cast<size_t>(k)]; }

  std::array<ParamRow, kParams> params;
  std::array<SavedTensorSpec, kSavedTensors> kept;
  TensorShard shard;
  ops::Heads heads;  // of this rank
  Range vocabulary;  // the tokens whose rows of the embedding and the head this rank has
};

inline constexpr bool in_layer(Param p) {
  return p != Param::Embedding && p != Param::FinalNorm && p != Param::Head;
}

// Logical tensor ids leave room for more kinds of parameters, so that draws stay what they are when one is added.
inline constexpr int64_t kIdsPerLayer = 64;
static_assert(static_cast<int64_t>(kParams) <= kIdsPerLayer);
// A parameter of the model: which row of the table, in which layer (-1 outside the layers).
struct ParamId {
  int64_t layer = -1;
  Param param{};
  uint32_t tensor() const { return static_cast<uint32_t>((layer + 1) * kIdsPerLayer) + static_cast<uint32_t>(param); }
  // In an array of param_slots() elements: without the gaps that ids leave.
  size_t index() const { return static_cast<size_t>(layer + 1) * kParams + static_cast<size_t>(param); }
  bool operator==(const ParamId&) const = default;
};
inline size_t param_slots(const ModelConfig& config) {
  return static_cast<size_t>(config.layers + 1) * kParams;
}
// All parameters in the order of forward; and their logical names: "embedding", "layers.3.qkv", "final_norm", "head".
std::vector<ParamId> all_params(const ModelConfig& config, const LayerSpec& spec);
std::string logical_name(const LayerSpec& spec, const ParamId& id);
// "model.layers.3.self_attn.q_proj.weight"
std::string hf_name(const HfPart& part, const ParamId& id);

}  // namespace agoq::model
