#include <algorithm>
#include <array>
#include <filesystem>

#include "base/error.h"
#include "base/read_json.h"
#include "base/text.h"
#include "model/family.h"
#include "model/hf_folder.h"
#include "model/model_config.h"

namespace agoq::model {
namespace {

struct Preset {
  std::string_view name;
  int64_t vocab, hidden, ffn, layers, query_heads, kv_heads, max_positions;
  double theta;
  bool tied;
  bool llama3_rope;  // LLaMA 3.2's frequency scaling
  std::string_view model_type = "llama";
  float norm_eps = 1e-5f;
};
// From the models' own config.json; `demo` is small enough for a laptop and has 257 tokens: bytes and an end.
constexpr std::array<Preset, 11> kPresets = {
    {{"llama2-7b", 32000, 4096, 11008, 32, 32, 32, 4096, 10000, false, false},
     {"llama2-13b", 32000, 5120, 13824, 40, 40, 40, 4096, 10000, false, false},
     {"llama3-8b", 128256, 4096, 14336, 32, 32, 8, 8192, 500000, false, false},
     {"llama3.2-1b", 128256, 2048, 8192, 16, 32, 8, 131072, 500000, true, true},
     {"codellama-34b", 32000, 8192, 22016, 48, 64, 8, 16384, 1000000, false, false},
     {"olmo-1b", 50304, 2048, 8192, 16, 16, 16, 2048, 10000, true, false, "olmo"},
     {"olmo2-1b", 100352, 2048, 8192, 16, 16, 16, 4096, 500000, false, false, "olmo2", 1e-6f},
     {"olmo2-7b", 100352, 4096, 11008, 32, 32, 32, 4096, 500000, false, false, "olmo2", 1e-6f},
     {"olmo2-13b", 100352, 5120, 13824, 40, 40, 40, 4096, 500000, false, false, "olmo2", 1e-6f},
     {"olmo2-32b", 100352, 5120, 27648, 64, 40, 8, 4096, 500000, false, false, "olmo2", 1e-6f},
     {"demo", 257, 256, 704, 5, 8, 4, 1024, 10000, false, false}}};

ModelConfig from_preset(const Preset& p) {
  ModelConfig config;
  config.model_type = p.model_type;
  static_cast<LayerKind&>(config) = find_family(p.model_type)->layer;
  config.norm_eps = p.norm_eps;
  config.vocab_size = p.vocab;
  config.hidden_size = p.hidden;
  config.ffn_size = p.ffn;
  config.layers = p.layers;
  config.heads = {p.query_heads, p.kv_heads, p.hidden / p.query_heads};
  config.max_positions = p.max_positions;
  config.rope.dim = config.heads.dim;
  config.rope.theta = p.theta;
  if (p.llama3_rope) config.rope.llama3 = ops::Llama3Scaling{32, 1, 4, 8192};
  config.tied_embeddings = p.tied;
  return config;
}

const Preset* find_preset(const std::string& name) {
  const auto found = std::find_if(kPresets.begin(), kPresets.end(), [&](auto& p) { return p.name == name; });
  return found == kPresets.end() ? nullptr : &*found;
}

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  names.reserve(kPresets.size());
  for (const Preset& p : kPresets) names.emplace_back(p.name);
  return names;
}

ModelConfig preset(const std::string& name) {
  const Preset* found = find_preset(name);
  const std::vector<std::string> names = preset_names();
  require(found != nullptr, "unknown model '{}'{} (presets: {})", name, did_you_mean(name, names), join(names, ", "));
  return from_preset(*found);
}

ModelConfig find_config(const std::string& name_or_path, std::string_view ignored_keys) {
  namespace fs = std::filesystem;
  if (const Preset* found = find_preset(name_or_path)) return from_preset(*found);
  fs::path path = name_or_path;
  std::error_code ignored;
  const bool is_folder = fs::is_directory(path, ignored);
  if (is_folder) path /= "config.json";
  const std::vector<std::string> names = preset_names();
  require(fs::exists(path, ignored),
          "no model '{}'{}: it is neither a folder with a config.json, nor a config.json, nor a preset ({})",
          name_or_path, did_you_mean(name_or_path, names), join(names, ", "));
  ModelConfig config = config_from_json(read_text(path.string(), JsonLimits{}.bytes), path.string(), ignored_keys);
  if (is_folder && config.tied_embeddings && stores_another_head(name_or_path)) config.tied_embeddings = false;
  return config;
}

}  // namespace agoq::model
