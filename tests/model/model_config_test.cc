#include "model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error_of.h"
#include "base/scratch_folder.h"

namespace agoq::model {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Json = nlohmann::ordered_json;

// Sizes that are all different, so that a mixed-up field shows.
Json config_of(const std::string& model_type, const std::string& architecture) {
  return {{"architectures", {architecture}},
          {"model_type", model_type},
          {"vocab_size", 1000},
          {"hidden_size", 96},
          {"intermediate_size", 320},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 6},
          {"num_key_value_heads", 2},
          {"rms_norm_eps", 1e-05},
          {"max_position_embeddings", 512}};
}
Json llama() {
  return config_of("llama", "LlamaForCausalLM");
}
Json mistral() {
  return config_of("mistral", "MistralForCausalLM");
}
Json qwen2() {
  return config_of("qwen2", "Qwen2ForCausalLM");
}
Json qwen3() {
  return config_of("qwen3", "Qwen3ForCausalLM");
}

// As published: no epsilon, and a clip_qkv that is null.
Json olmo() {
  Json json = config_of("olmo", "OlmoForCausalLM");
  json.erase("rms_norm_eps");
  json["clip_qkv"] = nullptr;
  return json;
}
Json olmo2() {
  return config_of("olmo2", "Olmo2ForCausalLM");
}

ModelConfig read(const Json& json) {
  return config_from_json(json.dump(), "some/config.json");
}
Json with(Json json, const char* key, const Json& value) {
  json[key] = value;
  return json;
}
Json without(Json json, const char* key) {
  json.erase(key);
  return json;
}
std::string error_for(const Json& json) {
  return error_of([&] { read(json); });
}

void expect_equal(const ModelConfig& a, const ModelConfig& b) {
  EXPECT_EQ(a.model_type, b.model_type);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.hidden_size, b.hidden_size);
  EXPECT_EQ(a.ffn_size, b.ffn_size);
  EXPECT_EQ(a.layers, b.layers);
  EXPECT_EQ(a.heads.query, b.heads.query);
  EXPECT_EQ(a.heads.kv, b.heads.kv);
  EXPECT_EQ(a.heads.dim, b.heads.dim);
  EXPECT_EQ(a.max_positions, b.max_positions);
  EXPECT_EQ(static_cast<const LayerKind&>(a), static_cast<const LayerKind&>(b));
  EXPECT_EQ(a.norm_eps, b.norm_eps);
  EXPECT_EQ(a.rope.dim, b.rope.dim);
  EXPECT_EQ(a.rope.theta, b.rope.theta);
  EXPECT_EQ(a.rope.linear_factor, b.rope.linear_factor);
  ASSERT_EQ(a.rope.llama3.has_value(), b.rope.llama3.has_value());
  if (a.rope.llama3) {
    EXPECT_EQ(a.rope.llama3->factor, b.rope.llama3->factor);
    EXPECT_EQ(a.rope.llama3->low_freq_factor, b.rope.llama3->low_freq_factor);
    EXPECT_EQ(a.rope.llama3->high_freq_factor, b.rope.llama3->high_freq_factor);
    EXPECT_EQ(a.rope.llama3->original_max_positions, b.rope.llama3->original_max_positions);
  }
  EXPECT_EQ(a.window, b.window);
  EXPECT_EQ(a.tied_embeddings, b.tied_embeddings);
  EXPECT_EQ(a.init_std, b.init_std);
}

TEST(ModelConfig, ReadsEveryFieldOfLlama) {
  const ModelConfig config = read(llama());
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.vocab_size, 1000);
  EXPECT_EQ(config.hidden_size, 96);
  EXPECT_EQ(config.ffn_size, 320);
  EXPECT_EQ(config.layers, 3);
  EXPECT_EQ(config.heads.query, 6);
  EXPECT_EQ(config.heads.kv, 2);
  EXPECT_EQ(config.heads.dim, 16);
  EXPECT_EQ(config.max_positions, 512);
  EXPECT_EQ(config.norm_eps, 1e-5f);
  EXPECT_EQ(config.rope.dim, 16);
  EXPECT_EQ(config.rope.theta, 10000);
  EXPECT_FALSE(config.rope.llama3);
  EXPECT_EQ(config.window, 0);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_EQ(static_cast<const LayerKind&>(config), LayerKind{});
  EXPECT_EQ(config.init_std, 0.02f);
  EXPECT_EQ(config.original_json, llama().dump());
}

TEST(ModelConfig, MissingKeysMeanWhatTransformersMeans) {
  EXPECT_EQ(read(without(llama(), "num_key_value_heads")).heads.kv, 6);
  EXPECT_EQ(read(with(llama(), "num_key_value_heads", nullptr)).heads.kv, 6);
  EXPECT_EQ(read(with(qwen2(), "num_key_value_heads", nullptr)).heads.kv, 6);
  EXPECT_THAT(error_for(without(mistral(), "num_key_value_heads")), HasSubstr("num_key_value_heads 8"));
  EXPECT_EQ(read(without(llama(), "rms_norm_eps")).norm_eps, 1e-6f);
  EXPECT_EQ(read(without(llama(), "max_position_embeddings")).max_positions, 2048);
  EXPECT_EQ(error_for(with(llama(), "hidden_act", "swish")), "") << "silu by its other name";
  EXPECT_EQ(read(with(llama(), "head_dim", 24)).heads.dim, 24);
  EXPECT_EQ(read(with(llama(), "head_dim", nullptr)).heads.dim, 16);
  EXPECT_EQ(read(qwen3()).heads.dim, 128);
  EXPECT_EQ(read(with(qwen3(), "head_dim", 32)).heads.dim, 32);
  EXPECT_EQ(read(mistral()).window, 4096);
  EXPECT_TRUE(read(with(llama(), "tie_word_embeddings", true)).tied_embeddings);
  EXPECT_TRUE(read(qwen2()).qkv_bias);
  EXPECT_EQ(read(qwen3()).qk_norm, QkNorm::Head);
}

TEST(ModelConfig, OlmoHasALayerNormWithItsOwnEpsilon) {
  EXPECT_TRUE(read(olmo()).layer_norm);
  EXPECT_EQ(read(with(olmo(), "rms_norm_eps", 1e-3)).norm_eps, 1e-5f) << "a key that transformers does not read";
  EXPECT_EQ(read(without(olmo(), "num_key_value_heads")).heads.kv, 6);
  EXPECT_EQ(read(without(olmo(), "max_position_embeddings")).max_positions, 2048);
  EXPECT_FALSE(read(llama()).layer_norm);
}

TEST(ModelConfig, Olmo2HasItsNormsBehindAndAnEpsilonInItsFile) {
  EXPECT_TRUE(read(olmo2()).post_norm);
  EXPECT_EQ(read(olmo2()).qk_norm, QkNorm::Wide);
  EXPECT_EQ(read(with(olmo2(), "rms_norm_eps", 1e-3)).norm_eps, 1e-3f);
  EXPECT_EQ(read(without(olmo2(), "rms_norm_eps")).norm_eps, 1e-5f) << "not the 1e-6 of the other families";
  EXPECT_EQ(read(without(olmo2(), "num_key_value_heads")).heads.kv, 6);
  EXPECT_EQ(read(without(olmo2(), "max_position_embeddings")).max_positions, 2048);
}

TEST(ModelConfig, ReadsRopeOfBothGenerations) {
  EXPECT_EQ(read(with(llama(), "rope_theta", 500000)).rope.theta, 500000);
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 32.0},
                       {"low_freq_factor", 1.5},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  const ModelConfig four = read(with(with(llama(), "rope_theta", 500000.0), "rope_scaling", llama3));
  const ModelConfig five = read(with(llama(), "rope_parameters", with(llama3, "rope_theta", 500000.0)));
  expect_equal(four, five);
  EXPECT_EQ(four.rope.theta, 500000);
  ASSERT_TRUE(four.rope.llama3);
  EXPECT_EQ(four.rope.llama3->factor, 32);
  EXPECT_EQ(four.rope.llama3->low_freq_factor, 1.5);
  EXPECT_EQ(four.rope.llama3->high_freq_factor, 4);
  EXPECT_EQ(four.rope.llama3->original_max_positions, 8192);

  // transformers looks for it beside rope_scaling, then in it, then takes the model's length.
  const char* original = "original_max_position_embeddings";
  const Json bare = with(llama(), "rope_scaling", without(llama3, original));
  EXPECT_EQ(read(with(bare, original, 128)).rope.llama3->original_max_positions, 128);
  EXPECT_EQ(read(bare).rope.llama3->original_max_positions, 512);
  EXPECT_EQ(read(with(with(llama(), "rope_scaling", llama3), original, 8192)).rope.llama3->original_max_positions,
            8192);
  EXPECT_THAT(error_for(with(with(llama(), "rope_scaling", llama3), original, 128)),
              AllOf(HasSubstr("is 128"), HasSubstr("rope_scaling.original_max_position_embeddings is 8192")));

  EXPECT_EQ(read(with(llama(), "rope_scaling", {{"type", "linear"}, {"factor", 4.0}})).rope.linear_factor, 4);
  EXPECT_EQ(read(with(llama(), "rope_scaling", nullptr)).rope.linear_factor, 1);
  const Json plain = {{"rope_theta", 1e6}, {"rope_type", "default"}};
  EXPECT_EQ(read(with(llama(), "rope_parameters", plain)).rope.theta, 1e6);
}

TEST(ModelConfig, AWindowIsOfAllLayersOrRefused) {
  EXPECT_EQ(read(with(mistral(), "sliding_window", nullptr)).window, 0);
  EXPECT_EQ(read(with(mistral(), "sliding_window", 77)).window, 77);
  EXPECT_EQ(read(with(llama(), "sliding_window", nullptr)).window, 0);
  EXPECT_THAT(error_for(with(llama(), "sliding_window", 77)), HasSubstr("sliding_window 77 is not supported"));

  const Json off = with(qwen2(), "sliding_window", 77);
  EXPECT_EQ(read(off).window, 0);
  const Json on = with(off, "use_sliding_window", true);
  EXPECT_EQ(read(on).window, 0) << "it begins at layer 28 of 3";
  EXPECT_EQ(read(with(on, "max_window_layers", 3)).window, 0);
  EXPECT_EQ(read(with(on, "max_window_layers", 0)).window, 77);
  EXPECT_THAT(error_for(with(on, "max_window_layers", 1)), HasSubstr("sliding window in 2 of 3 layers"));

  const Json full = {"full_attention", "full_attention", "full_attention"};
  const Json sliding = {"sliding_attention", "sliding_attention", "sliding_attention"};
  const Json mixed = {"full_attention", "sliding_attention", "full_attention"};
  EXPECT_EQ(read(with(on, "layer_types", full)).window, 0);
  EXPECT_EQ(read(with(on, "layer_types", sliding)).window, 77);
  EXPECT_THAT(error_for(with(on, "layer_types", mixed)), HasSubstr("sliding window in 1 of 3 layers"));
  EXPECT_THAT(error_for(with(llama(), "layer_types", sliding)), HasSubstr("no sliding window is set"));
  EXPECT_THAT(error_for(with(llama(), "layer_types", {"full_attention"})), HasSubstr("must list 3 layers"));
  EXPECT_THAT(error_for(with(llama(), "layer_types", {"full_attention", "linear_attention", "full_attention"})),
              HasSubstr("\"linear_attention\" is not supported"));
  EXPECT_EQ(read(with(with(mistral(), "sliding_window", 77), "layer_types", sliding)).window, 77);
  EXPECT_THAT(error_for(with(with(mistral(), "sliding_window", 77), "layer_types", full)),
              HasSubstr("layer_types gives 0"));
}

TEST(ModelConfig, RefusesWhatItWouldComputeOtherwise) {
  EXPECT_THAT(error_for(config_of("gpt_neox", "GPTNeoXForCausalLM")),
              AllOf(HasSubstr("some/config.json"), HasSubstr("gpt_neox"),
                    HasSubstr("llama, mistral, qwen2, qwen3, olmo, olmo2")));
  const std::pair<Json, const char*> cases[] = {
      {without(llama(), "model_type"), "model_type is missing"},
      {with(llama(), "architectures", {"LlamaForSequenceClassification"}), "LlamaForSequenceClassification"},
      {with(llama(), "attention_bias", true), "o_proj"},
      {with(qwen3(), "attention_bias", true), "o_proj"},
      {with(olmo(), "attention_bias", true), "o_proj"},
      {with(olmo(), "clip_qkv", 8.0), "clip_qkv"},
      {with(olmo2(), "attention_bias", true), "o_proj"},
      {with(olmo2(), "sliding_window", 64), "sliding_window"},
      {with(llama(), "mlp_bias", true), "mlp_bias"},
      {with(llama(), "is_causal", false), "is_causal false is not supported"},
      {with(qwen3(), "is_causal", false), "--ignore-config-keys is_causal goes on"},
      {with(llama(), "per_layer_config", {{"0", {{"rms_norm_eps", 0.5}}}}), "per_layer_config {\"0\""},
      {with(llama(), "attention_chunk_size", 8), "attention_chunk_size 8"},
      {with(mistral(), "attention_bias", true), "attention_bias true"},
      {with(llama(), "hidden_act", "gelu"), "hidden_act \"gelu\""},
      {with(llama(), "attention_dropout", 0.1), "attention_dropout 0.1"},
      {with(llama(), "quantization_config", {{"quant_method", "awq"}}), "quantization_config"},
      {with(llama(), "partial_rotary_factor", 0.5), "partial_rotary_factor 0.5"},
      {with(llama(), "rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}), "\"dynamic\""},
      {with(llama(), "rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}), "\"yarn\""},
      {with(llama(), "rope_parameters", {{"rope_type", "longrope"}, {"rope_theta", 1e4}}), "\"longrope\""},
      {with(llama(), "rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}), "differs between layers"},
      {with(llama(), "rope_scaling", {{"rope_type", "llama3"}}), "rope_scaling.factor is missing"},
      {with(llama(), "rope_scaling", "linear"), "rope_scaling must be an object"},
      {with(with(llama(), "rope_scaling", {{"type", "linear"}, {"factor", 2.0}}), "rope_parameters",
            {{"rope_type", "linear"}, {"factor", 4.0}}),
       "rope_scaling and rope_parameters differ"},
  };
  for (const auto& [json, message] : cases) EXPECT_THAT(error_for(json), HasSubstr(message));
}

TEST(ModelConfig, ChecksEveryNumber) {
  const std::pair<Json, const char*> cases[] = {
      {without(llama(), "hidden_size"), "hidden_size is missing"},
      {with(llama(), "hidden_size", "96"), "hidden_size must be a whole number from 2 to 1048576, not \"96\""},
      {with(llama(), "hidden_size", 96.0), "hidden_size must be a whole number"},
      {with(llama(), "hidden_size", 18446744073709551615u), "not 18446744073709551615"},
      {with(llama(), "vocab_size", 0), "vocab_size must be"},
      {with(llama(), "intermediate_size", -320), "intermediate_size must be"},
      {with(llama(), "num_hidden_layers", 1025), "num_hidden_layers must be"},
      {with(llama(), "num_attention_heads", 7), "not a multiple of num_key_value_heads 2"},
      {with(with(llama(), "num_attention_heads", 10), "hidden_size", 96), "hidden_size 96 is not a multiple"},
      {with(with(llama(), "num_attention_heads", 10), "head_dim", 16), "hidden_size 96 is not a multiple"},
      {with(llama(), "num_key_value_heads", 0), "num_key_value_heads must be"},
      {with(llama(), "head_dim", 15), "head_dim 15 must be even"},
      {with(llama(), "rms_norm_eps", 0), "rms_norm_eps must be"},
      {with(llama(), "rms_norm_eps", "1e-5"), "rms_norm_eps must be a number"},
      {with(llama(), "rope_theta", -1), "rope_theta must be"},
      {with(llama(), "tie_word_embeddings", 1), "tie_word_embeddings must be true or false, not 1"},
      {with(llama(), "max_position_embeddings", 1e9), "max_position_embeddings must be a whole number"},
  };
  for (const auto& [json, message] : cases)
    EXPECT_THAT(error_for(json), AllOf(HasSubstr(message), HasSubstr("some/config.json")));
}

TEST(ModelConfig, ForeignBytesAreAnErrorThatNamesTheFile) {
  const auto error = [](const std::string& text) {
    return error_of([&] { config_from_json(text, "some/config.json"); });
  };
  EXPECT_THAT(error(""), HasSubstr("some/config.json is not JSON"));
  EXPECT_THAT(error("[1, 2]"), HasSubstr("JSON object is expected"));
  EXPECT_THAT(error("{\"a\": 1e999}"), HasSubstr("some/config.json is not JSON"));
  EXPECT_THAT(error(std::string(100000, '[')), HasSubstr("nested more than"));
  EXPECT_THAT(error(llama().dump() + "x"), HasSubstr("not JSON"));
  EXPECT_THAT(error(llama().dump() + std::string("\0x", 2)), HasSubstr("zero byte"));
}

TEST(ModelConfig, ExportChangesNothingButTheDtype) {
  Json original =
      with(with(llama(), "torch_dtype", "bfloat16"), "task_specific_params", {{"nested", {1, 2.5, nullptr}}});
  original["eos_token_id"] = {128001, 128008};
  const ModelConfig config = read(original);
  EXPECT_EQ(Json::parse(config_to_json(config)).dump(), original.dump()) << "order and numbers included";
  EXPECT_EQ(Json::parse(config_to_json(config, DType::F32)).dump(), with(original, "torch_dtype", "float32").dump());

  const Json newer = with(llama(), "dtype", "float32");
  EXPECT_EQ(Json::parse(config_to_json(read(newer), DType::F16)).dump(), with(newer, "dtype", "float16").dump());
  EXPECT_EQ(Json::parse(config_to_json(read(llama()), DType::BF16)).dump(),
            with(llama(), "torch_dtype", "bfloat16").dump());
}

TEST(ModelConfig, ExportWritesWhatHasChangedSince) {
  ModelConfig config = read(with(with(llama(), "tie_word_embeddings", true), "rope_theta", 5e5));
  config.tied_embeddings = false;
  config.max_positions = 4096;
  expect_equal(config_from_json(config_to_json(config), "config.json"), config);
  EXPECT_EQ(Json::parse(config_to_json(config)).size(), Json::parse(config.original_json).size()) << "no new key";

  // The old length was the default of another key, which must not change with it.
  const Json scaling = {{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}};
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    ModelConfig longer = read(with(llama(), key, scaling));
    ASSERT_EQ(longer.rope.llama3->original_max_positions, 512);
    longer.max_positions = 4096;
    expect_equal(config_from_json(config_to_json(longer), "config.json"), longer);
  }
}

TEST(ModelConfig, RefusesKeysThatItDoesNotKnowUnlessToldToIgnoreThem) {
  const Json strange = with(with(llama(), "logit_scale", 0.5), "residual_multiplier", 2);
  EXPECT_THAT(error_for(strange), AllOf(HasSubstr("some/config.json"), HasSubstr("logit_scale,residual_multiplier"),
                                        HasSubstr("--ignore-config-keys logit_scale,residual_multiplier")));
  EXPECT_THAT(error_for(with(llama(), "unheard_of", nullptr)), HasSubstr("unheard_of")) << "whatever its value is";
  const auto read_without = [](const Json& json, const char* keys) {
    return config_from_json(json.dump(), "some/config.json", keys);
  };
  const ModelConfig config = read_without(strange, "logit_scale, residual_multiplier,not_there");
  expect_equal(config, read(llama()));
  EXPECT_EQ(Json::parse(config_to_json(config)), llama()) << "what was ignored describes another model";
  EXPECT_THAT(error_of([&] { read_without(strange, "logit_scale"); }), HasSubstr("what residual_multiplier means"));
  expect_equal(read_without(with(llama(), "is_causal", false), "is_causal"), read(llama()));

  const Json rope = with(llama(), "rope_scaling", {{"type", "linear"}, {"factor", 2.0}, {"mscale", 0.7}});
  EXPECT_THAT(error_for(rope), HasSubstr("--ignore-config-keys rope_scaling.mscale"));
  EXPECT_EQ(read_without(rope, "rope_scaling.mscale").rope.linear_factor, 2);
  EXPECT_EQ(read_without(rope, "rope_scaling").rope.linear_factor, 1);
}

// As saved by transformers 4, with every key that its config classes wrote for the family.
TEST(ModelConfig, LoadsWhatTransformers4Saved) {
  const Json saved = {{"_name_or_path", "some/where"},
                      {"attention_dropout", 0.0},
                      {"bos_token_id", 1},
                      {"eos_token_id", {2, 3}},
                      {"hidden_act", "silu"},
                      {"initializer_range", 0.02},
                      {"rope_theta", 10000.0},
                      {"tie_word_embeddings", false},
                      {"torch_dtype", "bfloat16"},
                      {"transformers_version", "4.43.1"},
                      {"use_cache", true},
                      {"_attn_implementation_autoset", true}};
  const auto all = [&](Json json, const Json& more) {
    json.update(saved);
    json.update(more);
    return json;
  };
  const Json llama31 = {{"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 256},
                        {"rope_type", "llama3"}};
  const Json configs[] = {
      all(llama(), {{"pretraining_tp", 1}, {"rope_scaling", nullptr}, {"max_length", 4096}}),  // LLaMA 2, CodeLLaMA
      all(llama(), {{"max_sequence_length", 2048}, {"pad_token_id", -1}}),                     // LLaMA
      all(llama(), {{"attention_bias", false}, {"mlp_bias", false}, {"pretraining_tp", 1}, {"rope_scaling", llama31}}),
      all(llama(), {{"head_dim", 16}, {"tie_word_embeddings", true}, {"rope_scaling", llama31}}),
      all(mistral(), {{"head_dim", nullptr}, {"sliding_window", 4096}}),
      all(mistral(), {{"sliding_window", nullptr}}),
      all(qwen2(), {{"max_window_layers", 28}, {"sliding_window", 131072}, {"use_sliding_window", false}}),
      all(qwen2(), {{"use_mrope", false}, {"max_window_layers", 28}, {"sliding_window", nullptr}}),  // Qwen2.5
      all(qwen3(), {{"attention_bias", false},
                    {"head_dim", 128},
                    {"max_window_layers", 36},
                    {"rope_scaling", nullptr},
                    {"sliding_window", nullptr},
                    {"use_sliding_window", false}}),
      all(olmo(), {{"attention_bias", false}, {"pad_token_id", 1}, {"rope_scaling", nullptr}}),
      all(olmo2(), {{"attention_bias", false}, {"pad_token_id", 100277}, {"rope_scaling", nullptr}}),
  };
  for (const Json& json : configs) EXPECT_EQ(error_for(json), "") << json;
}

TEST(ModelConfig, WritesAConfigThatReadsTheSame) {
  const Json linear = {{"type", "linear"}, {"factor", 4.0}};
  std::vector<ModelConfig> configs = {read(with(llama(), "rope_scaling", linear)),
                                      read(with(llama(), "rms_norm_eps", 1.2345e-7)),
                                      read(with(mistral(), "sliding_window", nullptr)),
                                      read(with(mistral(), "sliding_window", 77)),
                                      read(qwen2()),
                                      read(olmo()),
                                      read(olmo2()),
                                      read(with(with(qwen3(), "use_sliding_window", true), "max_window_layers", 0))};
  for (const std::string& name : preset_names()) configs.push_back(preset(name));
  for (ModelConfig& config : configs) {
    config.original_json.clear();
    const std::string text = config_to_json(config, DType::BF16);
    SCOPED_TRACE(text);
    expect_equal(config_from_json(text, "config.json"), config);
    EXPECT_THAT(text, HasSubstr("\"torch_dtype\": \"bfloat16\""));
  }
  EXPECT_THAT(config_to_json(preset("llama3-8b")), HasSubstr("\"rms_norm_eps\": 1e-05")) << "not 9.99999974e-06";
}

// The published sizes of the models.
TEST(ModelConfig, PresetsHaveThePublishedNumberOfParameters) {
  EXPECT_EQ(preset("llama2-7b").parameters(), 6'738'415'616);
  EXPECT_EQ(preset("llama2-13b").parameters(), 13'015'864'320);
  EXPECT_EQ(preset("llama3-8b").parameters(), 8'030'261'248);
  EXPECT_EQ(preset("llama3.2-1b").parameters(), 1'235'814'400);
  EXPECT_EQ(preset("codellama-34b").parameters(), 33'743'970'304);
  EXPECT_EQ(preset("olmo-1b").parameters(), 1'176'764'416);
  EXPECT_EQ(preset("olmo2-1b").parameters(), 1'484'916'736);
  EXPECT_EQ(preset("olmo2-7b").parameters(), 7'298'617'344);
  EXPECT_EQ(preset("olmo2-13b").parameters(), 13'716'198'400);
  EXPECT_EQ(preset("olmo2-32b").parameters(), 32'234'279'936);
}

TEST(ModelConfig, ParametersAgreeWithTheFormula) {
  for (const Json& json :
       {llama(), mistral(), qwen2(), qwen3(), olmo(), olmo2(), with(llama(), "tie_word_embeddings", true)}) {
    const ModelConfig c = read(json);
    const int64_t h = 96, f = 320, v = 1000, d = c.heads.dim;
    int64_t layer = h * 6 * d + 2 * (h * 2 * d) + 6 * d * h + 3 * h * f;
    const int64_t norm = json["model_type"] == "olmo" ? 0 : h;
    if (json["model_type"] == "qwen2") layer += 6 * d + 2 * (2 * d);
    if (json["model_type"] == "qwen3") layer += 2 * d;
    if (json["model_type"] == "olmo2") layer += 6 * d + 2 * d;
    EXPECT_EQ(c.parameters(), 3 * (layer + 2 * norm) + norm + (c.tied_embeddings ? 1 : 2) * v * h);
  }
}

// Counted naively: every product of every token with every key it attends to.
double counted_flops(const ModelConfig& c, int64_t sequence) {
  const auto h = static_cast<double>(c.hidden_size), f = static_cast<double>(c.ffn_size),
             v = static_cast<double>(c.vocab_size), q = static_cast<double>(c.heads.query * c.heads.dim),
             kv = static_cast<double>(c.heads.kv * c.heads.dim), layers = static_cast<double>(c.layers);
  double attention = 0;
  for (int64_t i = 0; i < sequence; ++i)
    for (int64_t j = 0; j <= i; ++j)
      if (c.window == 0 || i - j < c.window) attention += 2 * (2 * q);  // q·k and p·v
  const double forward = layers * 2 * (h * (q + 2 * kv) + q * h + 3 * h * f) + 2 * h * v;
  return 3 * (forward + layers * attention / static_cast<double>(sequence));
}

TEST(ModelConfig, CountsTheOperationsOfAToken) {
  for (const Json& json : {llama(), with(llama(), "tie_word_embeddings", true), with(mistral(), "sliding_window", 77)})
    for (int64_t sequence : {1, 64, 76, 77, 78, 300}) {
      const ModelConfig config = read(json);
      const double expected = counted_flops(config, sequence);
      EXPECT_NEAR(config.flops_per_token(sequence), expected, 1e-9 * expected);
    }
}

TEST(ModelConfig, FindsPresetsFoldersAndFiles) {
  EXPECT_EQ(find_config("llama3-8b").vocab_size, 128256);
  ScratchFolder folder;
  write_plainly(folder.file("config.json"), llama().dump());
  EXPECT_EQ(find_config(folder.path()).vocab_size, 1000);
  EXPECT_EQ(find_config(folder.file("config.json")).vocab_size, 1000);
  EXPECT_THAT(error_of([] { find_config("llama3-9b"); }),
              AllOf(HasSubstr("did you mean 'llama3-8b'?"), HasSubstr("codellama-34b"), HasSubstr("demo")));
  EXPECT_THAT(error_of([] { preset("demmo"); }), HasSubstr("did you mean 'demo'?"));
  ScratchFolder empty;
  EXPECT_THAT(error_of([&] { find_config(empty.path()); }), HasSubstr("neither a folder with a config.json"));
}

TEST(ModelConfig, ReadsTheGoldens) {
  size_t read_configs = 0;
  for (const auto& entry : std::filesystem::directory_iterator(AGOQ_GOLDENS)) {
    const std::filesystem::path path = entry.path() / "model";
    if (!std::filesystem::exists(path / "config.json")) continue;
    SCOPED_TRACE(path);
    const ModelConfig config = find_config(path.string());
    const Json json = Json::parse(config.original_json);
    EXPECT_EQ(config.hidden_size, json["hidden_size"].get<int64_t>());
    EXPECT_EQ(config.model_type, json["model_type"].get<std::string>());
    EXPECT_EQ(Json::parse(config_to_json(config)).dump(), json.dump());
    ++read_configs;
  }
  EXPECT_GE(read_configs, 6u);
  const std::filesystem::path goldens = AGOQ_GOLDENS;
  EXPECT_EQ(find_config(goldens / "llama3_rope" / "model").rope.llama3->factor, 8);
  EXPECT_EQ(find_config(goldens / "mistral" / "model").window, 11);
  EXPECT_EQ(find_config(goldens / "qwen2" / "model").window, 0);
  EXPECT_EQ(find_config(goldens / "qwen3" / "model").rope.theta, 1e6);
}

}  // namespace
}  // namespace agoq::model
