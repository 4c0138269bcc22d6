// What the model types do not say in their config.json: the defaults of transformers for keys that are missing.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

namespace agoq::model {

struct Family {
  std::string_view model_type, architecture;
  int64_t kv_heads;  // 0: as many as query heads
  int64_t head_dim;  // 0: H / Hq
  int64_t max_positions;
  bool windows;     // it can have a sliding window
  int64_t window;   // Mistral 0.1 had one, so only an explicit null switches it off
  bool layer_norm;  // without weights, in place of RMSNorm
};

inline constexpr std::array<Family, 5> kFamilies = {{{"llama", "LlamaForCausalLM", 0, 0, 2048, false, 0, false},
                                                     {"mistral", "MistralForCausalLM", 8, 0, 131072, true, 4096, false},
                                                     {"qwen2", "Qwen2ForCausalLM", 32, 0, 32768, true, 0, false},
                                                     {"qwen3", "Qwen3ForCausalLM", 32, 128, 32768, true, 0, false},
                                                     {"olmo", "OlmoForCausalLM", 0, 0, 2048, false, 0, true}}};
inline constexpr float kLayerNormEps = 1e-5f;  // fixed in OLMo's code, no key of its file

inline const Family* find_family(std::string_view model_type) {
  const auto* found =
      std::find_if(kFamilies.begin(), kFamilies.end(), [&](auto& f) { return f.model_type == model_type; });
  return found == kFamilies.end() ? nullptr : found;
}

}  // namespace agoq::model
