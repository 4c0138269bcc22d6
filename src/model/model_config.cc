#include "model/model_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "model/layer_spec.h"

namespace agoq::model {
namespace {

using Json = nlohmann::ordered_json;

// What the model types don't say in the file: the defaults of transformers for keys that are missing.
struct Family {
  std::string_view model_type, architecture;
  int64_t kv_heads;  // 0: as many as query heads
  int64_t head_dim;  // 0: H / Hq
  int64_t max_positions;
  bool windows;     // it can have a sliding window
  int64_t window;   // Mistral 0.1 had one, so only an explicit null switches it off
  bool layer_norm;  // without weights, in place of RMSNorm
};
constexpr std::array<Family, 5> kFamilies = {{{"llama", "LlamaForCausalLM", 0, 0, 2048, false, 0, false},
                                              {"mistral", "MistralForCausalLM", 8, 0, 131072, true, 4096, false},
                                              {"qwen2", "Qwen2ForCausalLM", 32, 0, 32768, true, 0, false},
                                              {"qwen3", "Qwen3ForCausalLM", 32, 128, 32768, true, 0, false},
                                              {"olmo", "OlmoForCausalLM", 0, 0, 2048, false, 0, true}}};
constexpr double kDefaultTheta = 10000, kDefaultEps = 1e-6, kDefaultInit = 0.02;
constexpr float kLayerNormEps = 1e-5f;  // fixed in OLMo's code, no key of its file
constexpr int64_t kDefaultQwenWindow = 4096, kDefaultFirstWindowLayer = 28;

// Far above every published model; below them no product of sizes overflows.
constexpr int64_t kMaxVocab = 1 << 24, kMaxHidden = 1 << 20, kMaxFfn = 1 << 22, kMaxLayers = 1 << 14,
                  kMaxHeads = 1 << 16, kMaxHeadDim = 1024, kMaxPositions = 1 << 30;

const Family* find_family(std::string_view model_type) {
  const auto found =
      std::find_if(kFamilies.begin(), kFamilies.end(), [&](auto& f) { return f.model_type == model_type; });
  return found == kFamilies.end() ? nullptr : &*found;
}

// A value for a message; whoever wrote the file decided how long it is.
std::string shown(const Json& value) {
  constexpr size_t kLimit = 80;
  const std::string text = value.dump();
  return text.size() <= kLimit ? text : text.substr(0, kLimit) + "...";
}

// One JSON object of the file. Every read checks type and bounds and names the key; null means "not given".
class Fields {
 public:
  Fields(const Json& object, std::string prefix, const std::string& file)
      : object_(object), prefix_(std::move(prefix)), file_(file) {}

  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  bool is_null(const char* key) const { return object_.contains(key) && object_[key].is_null(); }
  const Json& at(const char* key) const {
    check(has(key), "{}{} is missing", prefix_, key);
    return object_[key];
  }

  int64_t integer(const char* key, int64_t low, int64_t high) const {
    const Json& value = at(key);
    // A number above 2^63 is unsigned for the parser, and above every bound.
    const bool whole = value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX);
    const int64_t number = whole ? value.get<int64_t>() : -1;
    check(whole && number >= low && number <= high, "{}{} must be a whole number from {} to {}, not {}", prefix_, key,
          low, high, shown(value));
    return number;
  }
  int64_t integer_or(const char* key, int64_t low, int64_t high, int64_t fallback) const {
    return has(key) ? integer(key, low, high) : fallback;
  }

  double number(const char* key, double low, double high) const {
    const Json& value = at(key);
    const double number = value.is_number() ? value.get<double>() : NAN;
    check(number >= low && number <= high, "{}{} must be a number from {} to {}, not {}", prefix_, key, low, high,
          shown(value));
    return number;
  }
  double number_or(const char* key, double low, double high, double fallback) const {
    return has(key) ? number(key, low, high) : fallback;
  }

  bool flag(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    check(at(key).is_boolean(), "{}{} must be true or false, not {}", prefix_, key, shown(at(key)));
    return at(key).get<bool>();
  }

  std::string text(const char* key) const {
    check(at(key).is_string(), "{}{} must be a string, not {}", prefix_, key, shown(at(key)));
    return at(key).get<std::string>();
  }
  std::string text_or(const char* key, const std::string& fallback) const { return has(key) ? text(key) : fallback; }

  Fields object(const char* key) const {
    check(at(key).is_object(), "{}{} must be an object, not {}", prefix_, key, shown(at(key)));
    return Fields(at(key), fmt::format("{}{}.", prefix_, key), file_);
  }
  bool empty() const { return object_.empty(); }
  // Per-layer settings are objects where a single one has numbers and strings.
  bool nested() const {
    return std::any_of(object_.begin(), object_.end(), [](const Json& value) { return value.is_object(); });
  }

  template <class... Args>
  void check(bool condition, fmt::format_string<Args...> text, Args&&... args) const {
    if (!condition) [[unlikely]]
      fail("{}: {}", file_, fmt::format(text, std::forward<Args>(args)...));
  }

 private:
  const Json& object_;
  std::string prefix_;
  const std::string& file_;
};

Json parse(const std::string& text, const std::string& file) {
  constexpr size_t kMaxSize = 16 << 20;
  constexpr int kMaxDepth = 32;
  require(text.size() <= kMaxSize, "{} has {} bytes, too many for a config.json", file, text.size());
  const auto limit_depth = [&](int depth, Json::parse_event_t, const Json&) {
    require(depth <= kMaxDepth, "{} is nested more than {} levels deep", file, kMaxDepth);
    return true;
  };
  Json json;
  try {
    json = Json::parse(text, limit_depth);
  } catch (const Json::exception& e) {
    fail("{} is not JSON: {}", file, std::string_view(e.what()).substr(0, 200));
  }
  require(json.is_object(), "{} is not a model's config: a JSON object is expected", file);
  return json;
}

const Family& read_family(const Fields& config) {
  const std::string model_type = config.text("model_type");
  const Family* family = find_family(model_type);
  std::vector<std::string_view> names;
  names.reserve(kFamilies.size());
  for (const Family& f : kFamilies) names.push_back(f.model_type);
  config.check(family != nullptr, "model_type {} is not supported; supported are {}", shown(model_type),
               fmt::join(names, ", "));
  if (config.has("architectures")) {
    const Json& list = config.at("architectures");
    const bool known = list.is_array() && std::find(list.begin(), list.end(), family->architecture) != list.end();
    config.check(known || list.empty(), "architectures {} is not supported; for model_type {} it must name {}",
                 shown(list), model_type, family->architecture);
  }
  return *family;
}

// What other code computes for this key, and this code doesn't.
void refuse_unsupported(const Fields& config, const Family& family) {
  config.check(!config.has("quantization_config"),
               "quantization_config: quantized weights cannot be trained; use the model's unquantized folder");
  const std::string act = config.text_or("hidden_act", "silu");
  config.check(act == "silu", "hidden_act {} is not supported; only silu is", shown(act));
  config.check(!config.flag("mlp_bias", false), "mlp_bias true is not supported: these layers have no bias there");
  if (family.model_type == "llama" || family.model_type == "qwen3" || family.model_type == "olmo")
    config.check(
        !config.flag("attention_bias", false),
        "attention_bias true is not supported: in {} it puts a bias on o_proj too, which this layer doesn't have",
        family.model_type);
  config.check(family.model_type != "olmo" || !config.has("clip_qkv"),
               "clip_qkv is not supported: these layers do not clip q, k and v; only null is");
  const double dropout = config.number_or("attention_dropout", 0, 1, 0);
  config.check(dropout == 0, "attention_dropout {} is not supported; only 0 is", dropout);
  const double rotary = config.number_or("partial_rotary_factor", 0, 1, 1);
  config.check(rotary == 1, "partial_rotary_factor {} is not supported; only 1 is", rotary);
}

ops::Heads read_heads(const Fields& config, const Family& family, int64_t hidden) {
  ops::Heads heads;
  heads.query = config.integer("num_attention_heads", 1, kMaxHeads);
  const bool as_query = config.is_null("num_key_value_heads") || family.kv_heads == 0;
  heads.kv = config.integer_or("num_key_value_heads", 1, kMaxHeads, as_query ? heads.query : family.kv_heads);
  config.check(heads.query % heads.kv == 0, "num_attention_heads {} is not a multiple of num_key_value_heads {}",
               heads.query, heads.kv);
  const bool derived = !config.has("head_dim") && family.head_dim == 0;
  config.check(!derived || hidden % heads.query == 0,
               "hidden_size {} is not a multiple of num_attention_heads {} and there is no head_dim", hidden,
               heads.query);
  heads.dim = config.integer_or("head_dim", 1, kMaxHeadDim, derived ? hidden / heads.query : family.head_dim);
  config.check(heads.dim % 2 == 0 && heads.dim <= kMaxHeadDim, "head_dim {} must be even and at most {}", heads.dim,
               kMaxHeadDim);
  config.check(heads.q_cols() <= kMaxFfn, "{} heads of {} are more than {} columns", heads.query, heads.dim, kMaxFfn);
  return heads;
}

ops::Llama3Scaling read_llama3(const Fields& rope) {
  ops::Llama3Scaling scaling;
  scaling.factor = rope.number("factor", 1, 1e6);
  scaling.low_freq_factor = rope.number("low_freq_factor", 1e-6, 1e6);
  scaling.high_freq_factor = rope.number("high_freq_factor", 1e-6, 1e6);
  scaling.original_max_positions = rope.integer("original_max_position_embeddings", 1, kMaxPositions);
  rope.check(scaling.low_freq_factor < scaling.high_freq_factor, "low_freq_factor {} must be below high_freq_factor {}",
             scaling.low_freq_factor, scaling.high_freq_factor);
  return scaling;
}

// transformers 4 writes rope_theta and rope_scaling (null, or an object); transformers 5 one object rope_parameters.
ops::RopeSpec read_rope(const Fields& config, int64_t dim) {
  constexpr double kMinTheta = 1, kMaxTheta = 1e15;
  ops::RopeSpec spec;
  spec.dim = dim;
  spec.theta = config.number_or("rope_theta", kMinTheta, kMaxTheta, kDefaultTheta);
  const bool scaling = config.has("rope_scaling") && !config.object("rope_scaling").empty();
  const char* key = scaling ? "rope_scaling" : "rope_parameters";
  if (!config.has(key)) return spec;

  const Fields rope = config.object(key);
  config.check(!rope.nested(), "{} differs between layers, which is not supported", key);
  spec.theta = rope.number_or("rope_theta", kMinTheta, kMaxTheta, spec.theta);
  const double rotary = rope.number_or("partial_rotary_factor", 0, 1, 1);
  config.check(rotary == 1, "{}.partial_rotary_factor {} is not supported; only 1 is", key, rotary);
  const std::string type = rope.text_or("rope_type", rope.text_or("type", "default"));
  if (type == "llama3") {
    spec.llama3 = read_llama3(rope);
  } else if (type == "linear") {
    spec.linear_factor = rope.number("factor", 1, 1e6);
  } else {
    config.check(type == "default", "{}: rope type {} is not supported; supported are default, linear, llama3", key,
                 shown(type));
  }
  return spec;
}

// How many layers layer_types gives a window, or -1 if there is no such key.
int64_t sliding_layers(const Fields& config, int64_t layers) {
  if (!config.has("layer_types")) return -1;
  const Json& types = config.at("layer_types");
  config.check(types.is_array() && types.size() == static_cast<size_t>(layers), "layer_types must list {} layers",
               layers);
  int64_t sliding = 0;
  for (const Json& type : types) {
    config.check(type == "full_attention" || type == "sliding_attention",
                 "layer_types: {} is not supported; supported are full_attention and sliding_attention", shown(type));
    sliding += type == "sliding_attention";
  }
  return sliding;
}

// The window of all layers, 0 for none; layers that differ are refused.
int64_t read_window(const Fields& config, const Family& family, int64_t layers) {
  int64_t window = 0, sliding = 0;
  if (family.model_type == "mistral") {
    window =
        config.integer_or("sliding_window", 1, kMaxPositions, config.is_null("sliding_window") ? 0 : family.window);
    sliding = window > 0 ? layers : 0;
  } else if (family.windows && config.flag("use_sliding_window", false)) {
    const int64_t fallback = config.is_null("sliding_window") ? 0 : kDefaultQwenWindow;
    window = config.integer_or("sliding_window", 1, kMaxPositions, fallback);
    const int64_t first = config.integer_or("max_window_layers", 0, kMaxLayers, kDefaultFirstWindowLayer);
    sliding = window > 0 ? std::max<int64_t>(layers - first, 0) : 0;
  }
  if (const int64_t listed = sliding_layers(config, layers); listed >= 0) {
    config.check(family.model_type != "mistral" || listed == sliding,
                 "layer_types gives {} of {} layers a sliding window and sliding_window gives it to {}", listed, layers,
                 sliding);
    config.check(listed == 0 || window > 0, "layer_types has sliding_attention, and no sliding window is set");
    sliding = listed;
  }
  config.check(sliding == 0 || sliding == layers, "a sliding window in {} of {} layers is not supported: all, or none",
               sliding, layers);
  return sliding > 0 ? window : 0;
}

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
  require(
      c.qkv_bias == (c.model_type == "qwen2") && c.qk_norm == (c.model_type == "qwen3"),
      "cannot write a config.json: biases on q, k, v are qwen2's and norms on q, k are qwen3's, and model_type is {}",
      c.model_type);
  require(c.window == 0 || family->windows, "cannot write a config.json: model_type {} has no sliding window",
          c.model_type);
  require(c.layer_norm == family->layer_norm && (!c.layer_norm || c.norm_eps == kLayerNormEps),
          "cannot write a config.json: LayerNorm, with an epsilon of {}, is olmo's, and model_type is {}",
          kLayerNormEps, c.model_type);
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
  if (c.model_type == "qwen3" || c.model_type == "olmo") json["attention_bias"] = false;
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

struct Preset {
  std::string_view name;
  int64_t vocab, hidden, ffn, layers, query_heads, kv_heads, max_positions;
  double theta;
  bool tied;
  bool llama3_rope;  // LLaMA 3.2's frequency scaling
  std::string_view model_type = "llama";
};
// From the models' own config.json; `demo` is small enough for a laptop and has 257 tokens: bytes and an end.
constexpr std::array<Preset, 7> kPresets = {
    {{"llama2-7b", 32000, 4096, 11008, 32, 32, 32, 4096, 10000, false, false},
     {"llama2-13b", 32000, 5120, 13824, 40, 40, 40, 4096, 10000, false, false},
     {"llama3-8b", 128256, 4096, 14336, 32, 32, 8, 8192, 500000, false, false},
     {"llama3.2-1b", 128256, 2048, 8192, 16, 32, 8, 131072, 500000, true, true},
     {"codellama-34b", 32000, 8192, 22016, 48, 64, 8, 16384, 1000000, false, false},
     {"olmo-1b", 50304, 2048, 8192, 16, 16, 16, 2048, 10000, true, false, "olmo"},
     {"demo", 257, 256, 704, 5, 8, 4, 1024, 10000, false, false}}};

ModelConfig from_preset(const Preset& p) {
  ModelConfig config;
  config.model_type = p.model_type;
  config.layer_norm = find_family(p.model_type)->layer_norm;
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

// Keys that a causal token attends to, its own among them, on average over a sequence.
double mean_keys(double sequence, double window) {
  if (window <= 0 || window >= sequence) return (sequence + 1) / 2;
  return (window * (window + 1) / 2 + (sequence - window) * window) / sequence;
}

}  // namespace

int64_t ModelConfig::parameters() const {
  const LayerSpec spec(*this);
  int64_t count = 0;
  for (const ParamRow& row : spec.params) count += in_layer(row.param) ? layers * row.count() : row.count();
  return count;
}

double ModelConfig::flops_per_token(int64_t sequence_length) const {
  const LayerSpec spec(*this);
  double layer_weights = 0;
  for (const Param p : {Param::Qkv, Param::Out, Param::GateUp, Param::Down})
    layer_weights += static_cast<double>(spec[p].count());
  const double head = static_cast<double>(vocab_size) * static_cast<double>(hidden_size);
  const double depth = static_cast<double>(layers);
  return 6 * (depth * layer_weights + head) + 3 * depth * attention_flops_per_token(sequence_length);
}

double ModelConfig::attention_flops_per_token(int64_t sequence_length) const {
  const double keys = mean_keys(static_cast<double>(sequence_length), static_cast<double>(window));
  return 4 * static_cast<double>(heads.q_cols()) * keys;
}

ModelConfig config_from_json(const std::string& text, const std::string& file) {
  const Json json = parse(text, file);
  const Fields fields(json, "", file);
  const Family& family = read_family(fields);
  refuse_unsupported(fields, family);
  ModelConfig config;
  config.model_type = family.model_type;
  config.vocab_size = fields.integer("vocab_size", 2, kMaxVocab);
  config.hidden_size = fields.integer("hidden_size", 2, kMaxHidden);
  config.ffn_size = fields.integer("intermediate_size", 2, kMaxFfn);
  config.layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.heads = read_heads(fields, family, config.hidden_size);
  config.max_positions = fields.integer_or("max_position_embeddings", 1, kMaxPositions, family.max_positions);
  config.layer_norm = family.layer_norm;
  config.norm_eps =
      config.layer_norm ? kLayerNormEps : static_cast<float>(fields.number_or("rms_norm_eps", 1e-20, 0.1, kDefaultEps));
  config.rope = read_rope(fields, config.heads.dim);
  config.window = read_window(fields, family, config.layers);
  config.tied_embeddings = fields.flag("tie_word_embeddings", false);
  config.qkv_bias = family.model_type == "qwen2";
  config.qk_norm = family.model_type == "qwen3";
  config.init_std = static_cast<float>(fields.number_or("initializer_range", 0, 1, kDefaultInit));
  config.original_json = text;
  return config;
}

std::string config_to_json(const ModelConfig& config, std::optional<DType> dtype) {
  Json json = config.original_json.empty() ? new_json(config) : parse(config.original_json, "config.json");
  if (dtype) set_dtype(json, *dtype);
  return json.dump(2) + "\n";
}

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

ModelConfig find_config(const std::string& name_or_path) {
  namespace fs = std::filesystem;
  if (const Preset* found = find_preset(name_or_path)) return from_preset(*found);
  fs::path path = name_or_path;
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) path /= "config.json";
  const std::vector<std::string> names = preset_names();
  require(fs::exists(path, ignored),
          "no model '{}'{}: it is neither a folder with a config.json, nor a config.json, nor a preset ({})",
          name_or_path, did_you_mean(name_or_path, names), join(names, ", "));
  const MappedFile file(path.string());
  const auto bytes = file.bytes();
  return config_from_json(std::string(bytes.begin(), bytes.end()), path.string());
}

}  // namespace agoq::model
