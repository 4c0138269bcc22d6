// config.json of a Hugging Face folder, as transformers 4 and 5 write it.
#include "base/read_json.h"
#include "model/config_keys.h"
#include "model/family.h"
#include "model/model_config.h"

namespace agoq::model {
namespace {

constexpr double kDefaultTheta = 10000, kDefaultInit = 0.02;
constexpr int64_t kDefaultQwenWindow = 4096, kDefaultFirstWindowLayer = 28;

// Far above every published model; below them no product of sizes overflows, and planning takes moments.
constexpr int64_t kMaxVocab = 1 << 24, kMaxHidden = 1 << 20, kMaxFfn = 1 << 22, kMaxLayers = 1 << 10,
                  kMaxHeads = 1 << 16, kMaxHeadDim = 1024, kMaxPositions = 1 << 30;

bool is_text(const ConfigJson& value, std::string_view text) {
  const auto* found = value.get_ptr<const std::string*>();
  return found != nullptr && *found == text;
}

const Family& read_family(const ConfigFields& config) {
  const std::string model_type = config.text("model_type");
  const Family* family = find_family(model_type);
  std::vector<std::string_view> names;
  names.reserve(kFamilies.size());
  for (const Family& f : kFamilies) names.push_back(f.model_type);
  config.check(family != nullptr, "model_type {} is not supported; supported are {}", shown(model_type),
               fmt::join(names, ", "));
  if (config.has("architectures")) {
    const ConfigJson& list = config.at("architectures");
    const bool known = list.is_array() && std::any_of(list.begin(), list.end(), [&](const ConfigJson& name) {
                         return is_text(name, family->architecture);
                       });
    config.check(known || list.empty(), "architectures {} is not supported; for model_type {} it must name {}",
                 shown(list), model_type, family->architecture);
  }
  return *family;
}

void check_activation(const ConfigFields& config) {
  const std::string act = config.text_or("hidden_act", "silu");
  config.check(act == "silu" || act == "swish", "hidden_act {} is not supported; only silu is, also called swish",
               shown(act));
}

ops::Heads read_heads(const ConfigFields& config, const Family& family, int64_t hidden) {
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
  config.check(family.model_type != "llama" || hidden % heads.query == 0,
               "hidden_size {} is not a multiple of num_attention_heads {}: transformers refuses such a llama, so its "
               "export could not be loaded",
               hidden, heads.query);
  heads.dim = config.integer_or("head_dim", 1, kMaxHeadDim, derived ? hidden / heads.query : family.head_dim);
  config.check(heads.dim % 2 == 0 && heads.dim <= kMaxHeadDim, "head_dim {} must be even and at most {}", heads.dim,
               kMaxHeadDim);
  config.check(heads.q_cols() <= kMaxFfn, "{} heads of {} are more than {} columns", heads.query, heads.dim, kMaxFfn);
  return heads;
}

// transformers reads this key beside rope_scaling and, if it is missing, in it; without both it is the model's length.
int64_t read_original_positions(const ConfigFields& config, const ConfigFields& rope, int64_t max_positions) {
  constexpr const char* kKey = "original_max_position_embeddings";
  const int64_t inner = rope.integer_or(kKey, 1, kMaxPositions, max_positions);
  const int64_t outer = config.integer_or(kKey, 1, kMaxPositions, inner);
  config.check(inner == outer || !rope.has(kKey), "{} is {}, and {}{} is {}: only one can count; remove the wrong one",
               kKey, outer, rope.prefix(), kKey, inner);
  return outer;
}

ops::Llama3Scaling read_llama3(const ConfigFields& rope, int64_t original_positions) {
  ops::Llama3Scaling scaling;
  scaling.factor = rope.number("factor", 1, 1e6);
  scaling.low_freq_factor = rope.number("low_freq_factor", 1e-6, 1e6);
  scaling.high_freq_factor = rope.number("high_freq_factor", 1e-6, 1e6);
  scaling.original_max_positions = original_positions;
  rope.check(scaling.low_freq_factor < scaling.high_freq_factor, "low_freq_factor {} must be below high_freq_factor {}",
             scaling.low_freq_factor, scaling.high_freq_factor);
  return scaling;
}

// transformers 4 writes rope_theta and rope_scaling (null, or an object); transformers 5 one object rope_parameters.
const char* rope_key(const ConfigFields& config) {
  const bool scaling = config.has("rope_scaling") && !config.object("rope_scaling").empty();
  config.check(!scaling || !config.has("rope_parameters") || config.at("rope_scaling") == config.at("rope_parameters"),
               "rope_scaling and rope_parameters differ: only one can count; remove the wrong one");
  if (scaling) return "rope_scaling";
  return config.has("rope_parameters") ? "rope_parameters" : nullptr;
}

ops::RopeSpec read_rope(const ConfigFields& config, const ModelConfig& model) {
  constexpr double kMinTheta = 1, kMaxTheta = 1e15;
  ops::RopeSpec spec;
  spec.dim = model.heads.dim;
  spec.theta = config.number_or("rope_theta", kMinTheta, kMaxTheta, kDefaultTheta);
  config.has("original_max_position_embeddings");  // idle where nothing is scaled
  const char* key = rope_key(config);
  if (key == nullptr) return spec;

  const ConfigFields rope = config.object(key);
  config.check(!rope.nested(), "{} differs between layers, which is not supported", key);
  spec.theta = rope.number_or("rope_theta", kMinTheta, kMaxTheta, spec.theta);
  const double rotary = rope.number_or("partial_rotary_factor", 0, 1, 1);
  config.check(rotary == 1, "{}.partial_rotary_factor {} is not supported; only 1 is", key, rotary);
  const std::string type = rope.text_or("rope_type", rope.text_or("type", "default"));
  const int64_t original_positions = read_original_positions(config, rope, model.max_positions);
  if (type == "llama3") {
    spec.llama3 = read_llama3(rope, original_positions);
  } else if (type == "linear") {
    spec.linear_factor = rope.number("factor", 1, 1e6);
  } else {
    config.check(type == "default", "{}: rope type {} is not supported; supported are default, linear, llama3", key,
                 shown(type));
  }
  refuse_unknown(config, rope.unread(), model.model_type);
  return spec;
}

// How many layers layer_types gives a window, or -1 if there is no such key.
int64_t sliding_layers(const ConfigFields& config, int64_t layers) {
  if (!config.has("layer_types")) return -1;
  const ConfigJson& types = config.at("layer_types");
  config.check(types.is_array() && types.size() == static_cast<size_t>(layers), "layer_types must list {} layers",
               layers);
  int64_t sliding = 0;
  for (const ConfigJson& type : types) {
    const bool slides = is_text(type, "sliding_attention");
    config.check(slides || is_text(type, "full_attention"),
                 "layer_types: {} is not supported; supported are full_attention and sliding_attention", shown(type));
    sliding += slides;
  }
  return sliding;
}

// The window of all layers, 0 for none; layers that differ are refused.
int64_t read_window(const ConfigFields& config, const Family& family, int64_t layers) {
  int64_t window = 0, sliding = 0;
  for (const char* key : {"sliding_window", "max_window_layers"})
    if (family.windows) config.has(key);  // idle where use_sliding_window is off
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
  config.check(sliding == 0 || sliding == layers,
               "a sliding window in {} of {} layers is not supported (sliding_window, max_window_layers, layer_types): "
               "all, or none",
               sliding, layers);
  return sliding > 0 ? window : 0;
}

}  // namespace

ModelConfig config_from_json(const std::string& text, const std::string& file, std::string_view ignored_keys) {
  ConfigJson json = parse_json(text, file);
  require(json.is_object(), "{} is not a model's config: a JSON object is expected", file);
  if (!ignored_keys.empty()) erase_keys(json, ignored_keys);
  const ConfigFields fields(json, "", file);
  const Family& family = read_family(fields);
  check_activation(fields);
  check_fixed_keys(fields, family.model_type);
  ModelConfig config;
  config.model_type = family.model_type;
  config.vocab_size = fields.integer("vocab_size", 2, kMaxVocab);
  config.hidden_size = fields.integer("hidden_size", 2, kMaxHidden);
  config.ffn_size = fields.integer("intermediate_size", 2, kMaxFfn);
  config.layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.heads = read_heads(fields, family, config.hidden_size);
  config.max_positions = fields.integer_or("max_position_embeddings", 1, kMaxPositions, family.max_positions);
  static_cast<LayerKind&>(config) = family.layer;
  config.norm_eps = config.layer_norm
                        ? kLayerNormEps
                        : static_cast<float>(fields.number_or("rms_norm_eps", 1e-20, 0.1, double{family.norm_eps}));
  config.rope = read_rope(fields, config);
  config.window = read_window(fields, family, config.layers);
  config.tied_embeddings = fields.flag("tie_word_embeddings", false);
  config.init_std = static_cast<float>(fields.number_or("initializer_range", 0, 1, kDefaultInit));
  refuse_unknown(fields, fields.unread(), family.model_type);
  config.original_json = ignored_keys.empty() ? text : json.dump();
  return config;
}

}  // namespace agoq::model
