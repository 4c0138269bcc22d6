#include "model/layer_spec.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>

#include "base/safetensors.h"

namespace agoq::model {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> golden_models() {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(AGOQ_GOLDENS))
    if (fs::exists(entry.path() / "model" / "config.json")) folders.push_back(entry.path() / "model");
  return folders;
}

// What transformers wrote: the names and shapes of all tensors of a model.
std::map<std::string, std::vector<int64_t>> tensors_in(const fs::path& folder) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    const SafetensorsFile file(entry.path().string());
    for (const TensorEntry& tensor : file.entries()) shapes[tensor.name] = tensor.shape;
  }
  return shapes;
}

TEST(LayerSpec, NamesAndShapesAreThoseOfTransformers) {
  ASSERT_GE(golden_models().size(), 6u);
  for (const fs::path& folder : golden_models()) {
    SCOPED_TRACE(folder);
    const ModelConfig config = find_config(folder.string());
    const LayerSpec spec(config);
    std::map<std::string, std::vector<int64_t>> shapes;
    for (const ParamId& id : all_params(config, spec)) {
      const ParamRow& row = spec[id.param];
      for (const HfPart& part : row.parts) {
        std::vector<int64_t> shape = {part.extent};
        if (!row.one_dimensional()) shape.push_back(row.cols);
        EXPECT_TRUE(shapes.emplace(hf_name(part, id), shape).second) << hf_name(part, id);
      }
    }
    EXPECT_EQ(shapes, tensors_in(folder));
  }
}

TEST(LayerSpec, PartsCoverTheirParameter) {
  for (const fs::path& folder : golden_models()) {
    const LayerSpec spec(find_config(folder.string()));
    for (const ParamRow& row : spec.params) {
      if (!row.present()) continue;
      int64_t extent = 0;
      for (const HfPart& part : row.parts) extent += part.extent;
      EXPECT_EQ(extent, row.one_dimensional() ? row.cols : row.rows) << row.name;
    }
  }
}

TEST(LayerSpec, RowsStandAtTheirOwnIndex) {
  const LayerSpec spec(preset("llama3-8b"));
  for (size_t i = 0; i < kParams; ++i) EXPECT_EQ(static_cast<size_t>(spec.params[i].param), i);
  for (size_t i = 0; i < kSavedTensors; ++i) EXPECT_EQ(static_cast<size_t>(spec.kept[i].kept), i);
  EXPECT_EQ(spec[Param::Qkv].name, "qkv");
  EXPECT_EQ(spec[SavedTensor::Hidden].name, "h");
}

TEST(LayerSpec, TensorNumbersAndNamesAreUnique) {
  const ModelConfig config = preset("llama3.2-1b");
  const LayerSpec spec(config);
  std::set<uint32_t> numbers;
  std::set<std::string> names;
  const std::vector<ParamId> ids = all_params(config, spec);
  for (const ParamId& id : ids) {
    numbers.insert(id.tensor());
    names.insert(logical_name(spec, id));
  }
  EXPECT_EQ(numbers.size(), ids.size());
  EXPECT_EQ(names.size(), ids.size());
  EXPECT_EQ(ids.size(), 2u + 6u * 16u) << "embedding and final norm; tied, so no head; no biases, no q and k norms";
  EXPECT_TRUE(names.contains("embedding") && names.contains("layers.15.gate_up") && names.contains("final_norm"));
}

// Draws depend on ids. Other ids are other weights of a seed, and other rounding.
TEST(LayerSpec, TensorNumbersStay) {
  EXPECT_EQ((ParamId{-1, Param::Embedding}.tensor()), 0u);
  EXPECT_EQ((ParamId{-1, Param::Head}.tensor()), 11u);
  EXPECT_EQ((ParamId{0, Param::AttentionNorm}.tensor()), 65u);
  EXPECT_EQ((ParamId{31, Param::Down}.tensor()), 32u * 64u + 9u);
}

TEST(LayerSpec, NormsWithoutWeightsHaveNoParameters) {
  const ModelConfig config = preset("olmo-1b");
  const LayerSpec spec(config);
  EXPECT_EQ(all_params(config, spec).size(), 1u + 4u * 16u) << "embedding (the head, too), qkv, out, gate_up, down";
}

// No cut over 1, 2, 4 or 8 ranks of the tensor axis falls inside a block.
TEST(LayerSpec, CutsFallOnBlockBorders) {
  for (const std::string& name : preset_names()) {
    SCOPED_TRACE(name);
    const ModelConfig config = preset(name);
    const LayerSpec spec(config);
    for (const int64_t ranks : {2, 4, 8}) {
      const auto on_border = [&](const codec::RowBlocks& row, int64_t column) {
        std::set<int64_t> begins;
        for (int64_t b = 0; b < row.blocks(); ++b) begins.insert(row.begin(b));
        return begins.contains(column);
      };
      for (int64_t r = 1; r < ranks; ++r) {
        EXPECT_TRUE(on_border(spec[Param::Out].blocks(), config.heads.q_cols() * r / ranks));
        EXPECT_TRUE(on_border(spec[Param::Down].blocks(), config.ffn_size * r / ranks));
        const SavedTensorSpec& gate_up = spec[SavedTensor::GateUp];
        const codec::RowBlocks blocks(gate_up.cols, gate_up.segment);
        EXPECT_TRUE(on_border(blocks, config.ffn_size * r / ranks)) << "gate";
        EXPECT_TRUE(on_border(blocks, config.ffn_size + config.ffn_size * r / ranks)) << "up";
      }
      EXPECT_TRUE(on_border(codec::RowBlocks(spec[SavedTensor::Qkv].cols, spec[SavedTensor::Qkv].segment),
                            config.heads.k_begin()));
      EXPECT_TRUE(on_border(codec::RowBlocks(spec[SavedTensor::Qkv].cols, spec[SavedTensor::Qkv].segment),
                            config.heads.v_begin()));
    }
  }
}

TEST(LayerSpec, DecayIsNotOnNormsBiasesAndEmbeddings) {
  ModelConfig config = find_config((fs::path(AGOQ_GOLDENS) / "qwen2" / "model").string());
  const LayerSpec spec(config);
  for (const ParamRow& row : spec.params) {
    const bool matrix = row.param == Param::Qkv || row.param == Param::Out || row.param == Param::GateUp ||
                        row.param == Param::Down || row.param == Param::Head;
    EXPECT_EQ(row.decay, matrix) << row.name;
  }
}

}  // namespace
}  // namespace agoq::model
