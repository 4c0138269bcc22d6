// One table describes the model and is the only truth: every parameter and every tensor that forward may leave for
// backward, with its shape, how it is cut over the tensor axis, its Hugging Face names, decay, initialisation and
// reduction group. Forward, backward, memory, checkpoints, import and export, telemetry and docs all read it.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "codec/quantized.h"
#include "model/model_config.h"

namespace agoq::model {

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
enum class Kept : uint8_t { X1, Rstd1, N1, Qkv, QkRstd, O, Lse, X2, Rstd2, N2, GateUp, Hidden, Count };

inline constexpr size_t kParams = static_cast<size_t>(Param::Count);
inline constexpr size_t kKept = static_cast<size_t>(Kept::Count);

enum class Cut : uint8_t { None, Rows, Columns };                          // over the tensor axis
enum class Reduction : uint8_t { Data, DataAndTensor, DataAndEnds };       // which ranks hold addends of its gradient
enum class Init : uint8_t { Normal, ResidualNormal, Ones, Zeros };         // ResidualNormal: std / sqrt(2 L)
enum class KeptGroup : uint8_t { Stat, Norm, Attention, Mlp, GemmInput };  // what a recipe's override can name at once

// A fused parameter is the stack of these Hugging Face tensors: rows of a matrix, elements of a vector.
struct HfPart {
  std::string name;    // "self_attn.q_proj.weight"; of a layer: without "model.layers.N."
  int64_t extent = 0;  // rows, or elements of a 1-D parameter
};

struct ParamRow {
  Param param{};
  std::string_view name;  // "qkv"
  int64_t rows = 0;       // 1 for 1-D parameters
  int64_t cols = 0;
  int64_t segment = 0;  // of the blocks of its gradient and moments (codec::RowBlocks)
  Cut cut = Cut::None;
  Reduction reduction = Reduction::Data;
  bool decay = true;
  Init init = Init::Normal;
  std::vector<HfPart> parts;
  bool one_dimensional() const { return rows == 1; }
  bool present() const { return rows > 0; }
  int64_t count() const { return rows * cols; }
  codec::RowBlocks blocks() const { return {cols, segment}; }
};

struct KeptRow {
  Kept kept{};
  std::string_view name;  // "x1"
  int64_t cols = 0;       // per token; 0: this architecture has none
  int64_t segment = 0;
  KeptGroup group{};
  bool present() const { return cols > 0; }
};

struct LayerSpec {
  explicit LayerSpec(const ModelConfig& config);
  const ParamRow& operator[](Param p) const { return params[static_cast<size_t>(p)]; }
  const KeptRow& operator[](Kept k) const { return kept[static_cast<size_t>(k)]; }

  std::array<ParamRow, kParams> params;
  std::array<KeptRow, kKept> kept;
};

inline constexpr bool in_layer(Param p) {
  return p != Param::Embedding && p != Param::FinalNorm && p != Param::Head;
}

// Logical tensor ids leave room for more kinds of parameters, so that draws stay what they are when one is added.
inline constexpr int64_t kIdsPerLayer = 16;
static_assert(static_cast<int64_t>(kParams) <= kIdsPerLayer);
// Ids of a model lie below this.
inline size_t tensor_ids(const ModelConfig& config) {
  return static_cast<size_t>((config.layers + 1) * kIdsPerLayer);
}

// A parameter of the model: which row of the table, in which layer (-1 outside the layers).
struct ParamId {
  int64_t layer = -1;
  Param param{};
  uint32_t tensor() const { return static_cast<uint32_t>((layer + 1) * kIdsPerLayer) + static_cast<uint32_t>(param); }
  bool operator==(const ParamId&) const = default;
};
// All parameters in the order of forward; and their logical names: "embedding", "layers.3.qkv", "final_norm", "head".
std::vector<ParamId> all_params(const ModelConfig& config, const LayerSpec& spec);
std::string logical_name(const LayerSpec& spec, const ParamId& id);
// "model.layers.3.self_attn.q_proj.weight"
std::string hf_name(const HfPart& part, const ParamId& id);

}  // namespace agoq::model
