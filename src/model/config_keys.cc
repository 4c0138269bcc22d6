#include "model/config_keys.h"

#include <algorithm>
#include <array>

#include "base/read_json.h"
#include "base/text.h"

namespace agoq::model {
namespace {

// One value is what this code computes. `families` are model types, empty: all. `value` is JSON; null and a missing key
// are as good.
struct FixedKey {
  const char* key;
  std::string_view families, value, reason;
};
constexpr auto kFixed = std::to_array<FixedKey>({
    {"is_causal", "", "true", "a token attends to itself and to those before it"},
    {"per_layer_config", "", "{}", "all layers have one shape"},
    {"attention_bias", "llama qwen3 olmo olmo2", "false",
     "it puts a bias on o_proj too, which this layer doesn't have"},
    {"attention_bias", "mistral", "false", "its layers have no biases"},
    {"mlp_bias", "", "false", "these layers have no bias there"},
    {"clip_qkv", "", "null", "these layers do not clip q, k and v"},
    {"attention_dropout", "", "0", "nothing is dropped in training"},
    {"partial_rotary_factor", "", "1", "RoPE turns whole heads"},
    {"sliding_window", "llama olmo olmo2", "null", "attention of this family looks back to the beginning"},
    {"use_sliding_window", "llama olmo olmo2", "false", "attention of this family looks back to the beginning"},
    {"attention_chunk_size", "", "null", "attention is not cut into chunks"},
    {"use_mrope", "", "false", "positions are counted along one axis"},
    {"is_encoder_decoder", "", "false", "the model is a decoder"},
    {"tie_encoder_decoder", "", "false", "the model is a decoder"},
    {"add_cross_attention", "", "false", "the model is a decoder"},
    {"cross_attention_hidden_size", "", "null", "the model is a decoder"},
    {"pruned_heads", "", "{}", "every layer has all heads"},
    {"quantization_config", "", "null",
     "quantized weights cannot be trained; use the model's unquantized folder instead"},
});

// Known to change no logit.
constexpr auto kIdle = std::to_array<std::string_view>({
    // Where the file comes from, and how its writer holds and runs the model.
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "_commit_hash",
    "dtype",
    "torch_dtype",
    "use_bfloat16",
    "_attn_implementation",
    "attn_implementation",
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "experts_implementation",
    "gradient_checkpointing",
    "chunk_size_feed_forward",
    "pretraining_tp",
    "torchscript",
    "tf_legacy_loss",
    "unsloth_fixed",
    "unsloth_version",
    "agoq_tokenizer",  // exports of ours (train/data/tokenizer_choice.h)
    // What forward returns beside the logits.
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict_in_generate",
    "tie_last_hidden_states",
    // Tokens, and how text is generated.
    "tokenizer_class",
    "prefix",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "is_decoder",
    "max_sequence_length",  // of the first LLaMA's; max_position_embeddings counts
    "max_length",
    "min_length",
    "max_new_tokens",
    "min_new_tokens",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "diversity_penalty",
    "length_penalty",
    "repetition_penalty",
    "exponential_decay_length_penalty",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "remove_invalid_values",
    "suppress_tokens",
    "begin_suppress_tokens",
    // Of heads that classify.
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "classifier_dropout",
    "finetuning_task",
    "task_specific_params",
});

// Nor do these, which transformers reads for other families only.
struct IdleKey {
  std::string_view key, families;
};
constexpr auto kIdleOfFamilies = std::to_array<IdleKey>({
    {"attention_bias", "qwen2"},  // q, k and v have a bias whatever it says
    {"rms_norm_eps", "olmo"},
    {"max_window_layers", "llama mistral olmo olmo2"},
});

bool is_of(std::string_view families, std::string_view model_type) {
  if (families.empty()) return true;
  const std::vector<std::string> names = split(families, ' ');
  return std::find(names.begin(), names.end(), model_type) != names.end();
}

bool is_idle(std::string_view key, std::string_view model_type) {
  return std::find(kIdle.begin(), kIdle.end(), key) != kIdle.end() ||
         std::any_of(kIdleOfFamilies.begin(), kIdleOfFamilies.end(),
                     [&](const IdleKey& idle) { return idle.key == key && is_of(idle.families, model_type); });
}

void erase_key(ConfigJson& json, std::string_view path) {
  ConfigJson* object = &json;
  for (size_t dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.')) {
    const auto inner = object->find(std::string(path.substr(0, dot)));
    if (inner == object->end() || !inner->is_object()) return;
    object = &*inner;
    path.remove_prefix(dot + 1);
  }
  object->erase(std::string(path));
}

}  // namespace

void erase_keys(ConfigJson& json, std::string_view keys) {
  for (const std::string& key : split(keys, ',')) erase_key(json, trim(key));
}

void check_fixed_keys(const ConfigFields& fields, std::string_view model_type) {
  for (const FixedKey& fixed : kFixed) {
    if (!is_of(fixed.families, model_type) || !fields.has(fixed.key)) continue;
    const ConfigJson& value = fields.at(fixed.key);
    if (value != ConfigJson::parse(fixed.value))
      fields.check(false,
                   "{0} {1} is not supported: {2}; only {3} is. --ignore-config-keys {0} goes on as if the file did "
                   "not have it",
                   fixed.key, shown(value), fixed.reason, fixed.value);
  }
}

void refuse_unknown(const ConfigFields& fields, const std::vector<std::string>& unread, std::string_view model_type) {
  constexpr size_t kMost = 300;  // bytes of the list in a message
  std::vector<std::string> unknown;
  for (const std::string& key : unread)
    if (!is_idle(key, model_type)) unknown.push_back(key);
  if (unknown.empty()) return;
  const std::string keys = shortened(join(unknown, ","), kMost);
  fields.check(false,
               "what {} mean{} for a {} is not known here, and it may change what the model computes. "
               "--ignore-config-keys {} goes on as if the file did not have {}",
               keys, unknown.size() == 1 ? "s" : "", model_type, keys, unknown.size() == 1 ? "it" : "them");
}

}  // namespace agoq::model
