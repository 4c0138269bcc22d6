// A config.json for AutoModelForCausalLM of transformers 4 and 5.
#include <charconv>

#include "base/read_json.h"
#include "model/config_fields.h"
#include "model/family.h"
#include "model/model_config.h"

namespace agoq::model {
namespace {

using Json = nlohmann::ordered_json;

// The double that prints like the float: 1e-05, not 9.999999747378752e-06.
double shortest(float x) {
  const std::string text = fmt::format("{}", x);
  double value = x;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

Json rope_scaling_json(const ops::RopeSpec& rope) {
  if (rope.llama3)
    return {{"rope_type", "llama3"},
            {"factor", rope.llama3->factor},
            {"low_freq_factor", rope.llama3->low_freq_factor},
            {"high_freq_factor", rope.llama3->high_freq_factor},
            {"original_max_position_embeddings", rope.llama3->original_max_positions}};
  if (rope.linear_factor != 1) return {{"rope_type", "linear"}, {"factor", rope.linear_factor}};
  return nullptr;
}

Json new_json(const ModelConfig& c) {
  const Family* family = find_family(c.model_type);
  require(family != nullptr, "cannot write a config.json for model_type '{}'", c.model_type);
  require(static_cast<const LayerKind&>(c) == family->layer,
          "cannot write a config.json: a model with these biases and norms is no {}", c.model_type);
  require(c.window == 0 || family->windows, "cannot write a config.json: model_type {} has no sliding window",
          c.model_type);
  require(!c.layer_norm || c.norm_eps == kLayerNormEps,
          "cannot write a config.json: the epsilon of a LayerNorm is {} there, not {}", kLayerNormEps, c.norm_eps);
  Json json;
  json["architectures"] = Json::array({family->architecture});
  json["model_type"] = c.model_type;
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.hidden_size;
  json["intermediate_size"] = c.ffn_size;
  json["num_hidden_layers"] = c.layers;
  json["num_attention_heads"] = c.heads.query;
  json["num_key_value_heads"] = c.heads.kv;
  json["head_dim"] = c.heads.dim;
  json["hidden_act"] = "silu";
  json["max_position_embeddings"] = c.max_positions;
  if (!c.layer_norm) json["rms_norm_eps"] = shortest(c.norm_eps);
  json["rope_theta"] = c.rope.theta;
  json["rope_scaling"] = rope_scaling_json(c.rope);
  json["tie_word_embeddings"] = c.tied_embeddings;
  json["initializer_range"] = shortest(c.init_std);
  json["attention_dropout"] = 0.0;
  if (c.model_type == "llama") json["attention_bias"] = json["mlp_bias"] = false;
  if (c.model_type == "qwen3" || c.model_type == "olmo" || c.model_type == "olmo2") json["attention_bias"] = false;
  if (c.model_type == "olmo") json["clip_qkv"] = nullptr;
  if (family->windows) json["sliding_window"] = c.window > 0 ? Json(c.window) : Json(nullptr);
  if (c.model_type == "qwen2" || c.model_type == "qwen3") {
    json["use_sliding_window"] = c.window > 0;
    json["max_window_layers"] = c.window > 0 ? 0 : c.layers;
  }
  json["bos_token_id"] = nullptr;  // the tokenizer's business, and no default of some other model
  json["eos_token_id"] = nullptr;
  json["use_cache"] = true;
  return json;
}

std::string_view torch_name(DType dtype) {
  switch (dtype) {
    case DType::F32:
      return "float32";
    case DType::BF16:
      return "bfloat16";
    case DType::F16:
      return "float16";
    default:
      fail("weights are written as fp32, bf16 or fp16, not {}", name_of(dtype));
  }
}

// transformers 5 writes "dtype" and reads both names; transformers 4 knew only the other.
void set_dtype(Json& json, DType dtype) {
  if (json.contains("dtype")) json["dtype"] = torch_name(dtype);
  if (json.contains("torch_dtype") || !json.contains("dtype")) json["torch_dtype"] = torch_name(dtype);
}

// What may have changed since the file was read: a head that turned out to be another than the embedding, and the
// longest sequence. All else stays as it was written.
Json kept_json(const ModelConfig& config) {
  const std::string file = "config.json";
  Json json = parse_json(config.original_json, file);
  const ModelConfig was = config_from_json(config.original_json, file);
  if (was.tied_embeddings != config.tied_embeddings) json["tie_word_embeddings"] = config.tied_embeddings;
  if (was.max_positions == config.max_positions) return json;
  json["max_position_embeddings"] = config.max_positions;
  constexpr const char* kOriginal = "original_max_position_embeddings";  // by default the one that has changed
  if (config.rope.llama3 && !json.contains(kOriginal)) {
    Json& rope = json[json.contains("rope_scaling") ? "rope_scaling" : "rope_parameters"];
    rope[kOriginal] = config.rope.llama3->original_max_positions;
  }
  return json;
}

}  // namespace

std::string config_to_json(const ModelConfig& config, std::optional<DType> dtype) {
  Json json = config.original_json.empty() ? new_json(config) : kept_json(config);
  if (dtype) set_dtype(json, *dtype);
  return json.dump(2) + "\n";
}

}  // namespace agoq::model
