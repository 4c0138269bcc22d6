// The shape of a LLaMA-architecture model, read from (config_reader.cc) and written as (config_writer.cc) a Hugging
// Face config.json, or taken from a preset (presets.cc).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "ops/attention/rope.h"
#include "ops/heads.h"

namespace agoq::model {

// The RMSNorm of q and k before RoPE, with weights of its own.
enum class QkNorm : uint8_t {
  None,
  Head,  // over each head (Qwen3)
  Wide,  // over all heads of q together, and all of k (OLMo 2)
};

// What the layers of a family have and others do not.
struct LayerKind {
  bool qkv_bias = false;  // Qwen2.5
  QkNorm qk_norm = QkNorm::None;
  bool layer_norm = false;  // OLMo: norms take off the mean and have no weights
  bool post_norm = false;   // OLMo 2: x + norm(attention(x)), and no norm in front
  bool operator==(const LayerKind&) const = default;
};

struct ModelConfig : LayerKind {
  std::string model_type = "llama";  // one of model/family.h
  int64_t vocab_size = 0;            // V
  int64_t hidden_size = 0;           // H
  int64_t ffn_size = 0;              // F
  int64_t layers = 0;                // L
  ops::Heads heads;                  // Hq, Hkv, D
  int64_t max_positions = 0;
  float norm_eps = 1e-5f;
  ops::RopeSpec rope;
  int64_t window = 0;  // sliding window of attention, 0: none
  bool tied_embeddings = false;
  float init_std = 0.02f;
  std::string original_json;  // the config.json it came from, so that export changes nothing it doesn't know

  int64_t parameters() const;  // a tied head counts once
  // Floating-point operations of the matrix products of one training token, forward and backward, at sequence length S:
  //   6 · (weights of all matrices, the head's included, the embedding's not) + 12 · L · Hq · D · c
  // where c is the mean number of keys that a token attends to: (S + 1) / 2, or less with a sliding window. What
  // recomputation adds is not counted: it is model FLOPs, not hardware FLOPs.
  double flops_per_token(int64_t sequence_length) const;
  // Of these, one layer's attention in the forward pass: 4 · Hq · D · c. Backward has twice as many.
  double attention_flops_per_token(int64_t sequence_length) const;
};

// Parses a config.json. An architecture that would compute something else than this code is refused by name, and so is
// every key whose meaning is not known (model/config_keys.cc); keys that are missing mean what they mean in
// transformers. `ignored_keys` ("a,b.c") are taken as if the file did not have them. `file` is for messages.
ModelConfig config_from_json(const std::string& text, const std::string& file, std::string_view ignored_keys = {});
// A config.json for AutoModelForCausalLM of transformers 4 and 5: original_json if there is one, with what has changed
// in `config` since, otherwise all keys. With `dtype` it names the type of the weights beside it.
std::string config_to_json(const ModelConfig& config, std::optional<DType> dtype = std::nullopt);
// llama3-8b, olmo2-7b, demo, ... (preset_names); an error lists them.
ModelConfig preset(const std::string& name);
std::vector<std::string> preset_names();
// A preset's name, a Hugging Face folder, or a config.json. Where the folder ties the head to the embedding and holds
// another head, that counts: the model is untied, as in transformers.
ModelConfig find_config(const std::string& name_or_path, std::string_view ignored_keys = {});

}  // namespace agoq::model
