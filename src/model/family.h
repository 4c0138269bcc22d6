// The model types: what their layers are, and what their config.json does not say, the defaults of transformers for
// keys that are missing.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include "model/model_config.h"

namespace agoq::model {

struct Family {
  std::string_view model_type, architecture;
  LayerKind layer = {};
  int64_t kv_heads = 0;  // 0: as many as query heads
  int64_t head_dim = 0;  // 0: H / Hq
  int64_t max_positions = 2048;
  float norm_eps = 1e-6f;
  bool windows = false;  // it can have a sliding window
  int64_t window = 0;    // Mistral 0.1 had one, so only an explicit null switches it off
};

inline constexpr float kLayerNormEps = 1e-5f;  // fixed in OLMo's code, no key of its file
inline constexpr std::array kFamilies = {
    Family{.model_type = "llama", .architecture = "LlamaForCausalLM"},
    Family{.model_type = "mistral",
           .architecture = "MistralForCausalLM",
           .kv_heads = 8,
           .max_positions = 131072,
           .windows = true,
           .window = 4096},
    Family{.model_type = "qwen2",
           .architecture = "Qwen2ForCausalLM",
           .layer = {.qkv_bias = true},
           .kv_heads = 32,
           .max_positions = 32768,
           .windows = true},
    Family{.model_type = "qwen3",
           .architecture = "Qwen3ForCausalLM",
           .layer = {.qk_norm = QkNorm::Head},
           .kv_heads = 32,
           .head_dim = 128,
           .max_positions = 32768,
           .windows = true},
    Family{.model_type = "olmo",
           .architecture = "OlmoForCausalLM",
           .layer = {.layer_norm = true},
           .norm_eps = kLayerNormEps},
    Family{.model_type = "olmo2",
           .architecture = "Olmo2ForCausalLM",
           .layer = {.qk_norm = QkNorm::Wide, .post_norm = true},
           .norm_eps = 1e-5f},
};

inline const Family* find_family(std::string_view model_type) {
  const auto* found =
      std::find_if(kFamilies.begin(), kFamilies.end(), [&](auto& f) { return f.model_type == model_type; });
  return found == kFamilies.end() ? nullptr : found;
}

}  // namespace agoq::model
