#include "train/run_metadata.h"

#include <nlohmann/json.hpp>

namespace agoq::train {
namespace {

using Json = nlohmann::ordered_json;

Json shape_of(const model::ModelConfig& model) {
  Json json = Json::parse(model::config_to_json(model));
  for (const char* spelling_only : {"torch_dtype", "dtype", "transformers_version", "_name_or_path"})
    json.erase(spelling_only);
  return json;
}

}  // namespace

std::string identity_json(const TrainConfig& c, const model::ModelConfig& model, const std::string& data_identity) {
  Json json;
  json["model"] = shape_of(model);
  json["data"] = Json::parse(data_identity);
  json["seq-length"] = c.seq_length;
  json["micro-batch-size"] = c.micro_batch_size;
  json["global-batch-size"] = c.global_batch_size;
  json["seed"] = c.seed;
  json["finetune"] = c.finetune;
  json["compute-dtype"] = c.compute_dtype;
  json["main-params-dtype"] = c.main_params_dtype;
  json["exp-avg-dtype"] = c.exp_avg_dtype;
  json["exp-avg-sq-dtype"] = c.exp_avg_sq_dtype;
  return json.dump();
}

std::string settings_json(const TrainConfig& c) {
  Json json;
  json["model"] = c.model;
  json["tokenizer"] = c.tokenizer;
  json["seq-length"] = c.seq_length;
  json["compute-dtype"] = c.compute_dtype;
  json["main-params-dtype"] = c.main_params_dtype;
  json["document-separator"] = c.document_separator;
  json["data-dtype"] = c.data_dtype;
  json["eod-token"] = c.eod_token;
  json["reset-position-ids"] = c.reset_position_ids;
  json["reset-attention-mask"] = c.reset_attention_mask;
  json["eod-mask-loss"] = c.eod_mask_loss;
  return json.dump();
}

void apply_settings(const std::string& settings, TrainConfig& c) {
  const Json json = Json::parse(settings);
  c.model = json.value("model", "");
  if (c.tokenizer.empty()) c.tokenizer = json.value("tokenizer", "");
  if (c.seq_length == 0) c.seq_length = json.value("seq-length", int64_t{0});
  if (c.compute_dtype.empty()) c.compute_dtype = json.value("compute-dtype", "fp32");
  c.main_params_dtype = json.value("main-params-dtype", "split");
  if (c.document_separator.empty()) c.document_separator = json.value("document-separator", "");
  if (c.data_dtype == TrainConfig{}.data_dtype) c.data_dtype = json.value("data-dtype", c.data_dtype);
  if (c.eod_token < 0) c.eod_token = json.value("eod-token", int64_t{-1});
  c.reset_position_ids |= json.value("reset-position-ids", false);
  c.reset_attention_mask |= json.value("reset-attention-mask", false);
  c.eod_mask_loss |= json.value("eod-mask-loss", false);
}

std::string to_json(const RunMetadata& m) {
  Json json;
  json["updates"] = m.updates;
  json["skipped"] = m.skipped;
  json["skipped_in_a_row"] = m.skipped_in_a_row;
  json["tokens"] = m.tokens;
  json["identity"] = Json::parse(m.identity);
  json["model"] = Json::parse(m.model);
  json["settings"] = Json::parse(m.settings);
  return json.dump();
}

RunMetadata metadata_from_json(const std::string& text, const std::string& file) {
  try {
    const Json json = Json::parse(text);
    return {json.at("updates"),        json.at("skipped"),         json.value("skipped_in_a_row", int64_t{0}),
            json.at("tokens"),         json.at("identity").dump(), json.at("model").dump(),
            json.at("settings").dump()};
  } catch (const Json::exception& error) {
    fail("{}: this checkpoint's metadata is not a training run's: {}", file, error.what());
  }
}

}  // namespace agoq::train
