#include "train/checkpoint/run_metadata.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "train/config/settings.h"
#include "train/data/token_file.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kDocuments = "documents";  // of an identity: what ends them; older runs do not tell

// In one spelling, whatever file it came from, and without what changes nothing that is computed.
Json architecture(model::ModelConfig model) {
  model.original_json.clear();
  Json json = Json::parse(model::config_to_json(model));
  for (const char* key :
       {"architectures", "max_position_embeddings", "initializer_range", "bos_token_id", "eos_token_id", "use_cache"})
    json.erase(key);
  return json;
}

template <class T>
Json as_json(const T& value) {
  return value;
}
Json as_json(const std::optional<bool>& value) {
  return value ? Json(*value) : Json();
}
template <class T>
void read_value(const Json& json, T& value) {
  json.get_to(value);
}
void read_value(const Json& json, std::optional<bool>& value) {
  value = json.is_null() ? std::nullopt : std::optional(json.get<bool>());
}

Json settings_json(const TrainConfig& config) {
  Json json;
  for (const Setting& setting : all_settings())
    std::visit([&](auto field) { json[setting.name] = as_json(config.*field); }, setting.field);
  return json;
}

TrainConfig settings_of(const Json& json) {
  TrainConfig config;
  for (const auto& entry : json.items())
    std::visit([&](auto field) { read_value(entry.value(), config.*field); }, find_setting(entry.key()).field);
  return config;
}

// One value where all parts of the data agree.
Json by_part(const Dataset& data, bool Dataset::DocumentRules::*of_part) {
  Json values = Json::array();
  for (const DatasetPart& part : data.parts()) values.push_back(data.documents(part).*of_part);
  const bool alike = std::all_of(values.begin(), values.end(), [&](const Json& value) { return value == values[0]; });
  return alike ? values[0] : values;
}

bool any_part(const Dataset& data, bool by_token) {
  return std::any_of(data.parts().begin(), data.parts().end(), [&](const DatasetPart& part) {
    const Dataset::DocumentRules documents = data.documents(part);
    return documents.matter() && documents.by_token == by_token;
  });
}

}  // namespace

std::string identity_json(const TrainConfig& c, const model::ModelConfig& model, const Dataset& data) {
  Json json;
  json["model"] = architecture(model);
  json["data"] = Json::parse(data.identity());
  json["seq-length"] = c.seq_length;
  json["global-batch-size"] = c.global_batch_size;
  json["seed"] = c.seed;
  json["reset-position-ids"] = by_part(data, &Dataset::DocumentRules::reset_positions);
  json["reset-attention-mask"] = by_part(data, &Dataset::DocumentRules::reset_attention);
  json["eod-mask-loss"] = c.eod_mask_loss;
  const bool by_token = any_part(data, true), by_index = any_part(data, false);
  if (by_token) json["eod-token"] = data.spec().eod_token;
  if (by_index)
    json[kDocuments] = "index";
  else if (by_token && !data.spec().only_eod_token)
    json[kDocuments] = "token";
  json["exp-avg-dtype"] = c.exp_avg_dtype;
  json["exp-avg-sq-dtype"] = c.exp_avg_sq_dtype;
  return json.dump();
}

bool ends_documents_by_token(const std::string& identity) {
  const Json json = Json::parse(identity);
  return json.contains("eod-token") && !json.contains(kDocuments);
}

std::string with_whole_contents(const std::string& identity, const Dataset& data) {
  Json json = Json::parse(identity);
  if (!json.contains("data") || json["data"].size() != data.parts().size()) return identity;
  const Json now = Json::parse(data.identity());
  for (size_t i = 0; i < now.size(); ++i) {
    Json& part = json["data"][i];
    const TokenFile& file = *data.parts()[i].file;
    const std::string sampled = fmt::format("{:016x}", file.sampled_fingerprint());
    if (!part.is_object() || part.value("fingerprint", Json()) != sampled) continue;
    if (file.format() == TokenFormat::Flat && file.has_mask())
      part["fingerprint"] = fmt::format("{} without {}, which was not read then", sampled, file.mask_path());
    else
      part["fingerprint"] = now[i]["fingerprint"];
  }
  return json.dump();
}

void keep_document_settings(TrainConfig& c, const TrainConfig& run) {
  if (!c.reset_position_ids) c.reset_position_ids = run.reset_position_ids;
  if (!c.reset_attention_mask) c.reset_attention_mask = run.reset_attention_mask;
}

void inherit(TrainConfig& c, const TrainConfig& run) {
  const TrainConfig defaults;
  c.main_params_dtype = run.main_params_dtype;
  const auto take = [&](auto TrainConfig::*field) {
    if (c.*field == defaults.*field) c.*field = run.*field;
  };
  take(&TrainConfig::seq_length);
  take(&TrainConfig::compute_dtype);
  take(&TrainConfig::document_separator);
  take(&TrainConfig::data_dtype);
  take(&TrainConfig::eod_token);
  take(&TrainConfig::prompt_bos);
  take(&TrainConfig::eod_mask_loss);
  keep_document_settings(c, run);
}

std::string find_moved(const std::string& path, const std::string& run_folder_then, const std::string& run_folder_now) {
  std::error_code ignored;
  const bool is_path = fs::path(path).is_absolute();  // not "byte"
  if (!is_path || run_folder_then.empty()) return path;
  const fs::path from_run = fs::path(path).lexically_relative(run_folder_then);
  const bool own = !from_run.empty() && *from_run.begin() != "..";
  if (!own && fs::exists(path, ignored)) return path;
  const fs::path moved = fs::absolute(run_folder_now) / from_run;
  return fs::exists(moved, ignored) ? moved.lexically_normal().string() : path;
}

std::string to_json(const RunMetadata& m) {
  Json json;
  json["updates"] = m.updates;
  json["skipped"] = m.skipped;
  json["without_targets"] = m.without_targets;
  json["skipped_in_a_row"] = m.skipped_in_a_row;
  json["tokens"] = m.tokens;
  if (m.iters_before_fit > 0) json["iters_before_fit"] = m.iters_before_fit;
  json["identity"] = Json::parse(m.identity);
  json["model"] = Json::parse(m.model);
  if (!m.gemm_algorithms.empty()) json["gemm_algorithms"] = Json::parse(m.gemm_algorithms);
  json["settings"] = settings_json(m.settings);
  json["model_folder"] = m.model_folder;
  json["vocabulary"] = m.vocabulary;
  return json.dump();
}

RunMetadata metadata_from_json(const std::string& text, const std::string& file) {
  try {
    const Json json = Json::parse(text);
    RunMetadata m;
    m.updates = json.at("updates");
    m.skipped = json.at("skipped");
    m.without_targets = json.value("without_targets", int64_t{0});
    m.skipped_in_a_row = json.at("skipped_in_a_row");
    m.tokens = json.at("tokens");
    m.iters_before_fit = json.value("iters_before_fit", int64_t{0});
    m.identity = json.at("identity").dump();
    m.model = json.at("model").dump();
    if (json.contains("gemm_algorithms")) m.gemm_algorithms = json["gemm_algorithms"].dump();
    m.settings = settings_of(json.at("settings"));
    m.model_folder = json.at("model_folder");
    m.vocabulary = json.value("vocabulary", "");  // not in runs of older versions
    return m;
  } catch (const Json::exception& error) {
    fail("{}: this checkpoint's metadata is not a training run's: {}", file, error.what());
  }
}

RunMetadata read_metadata(const Manifest& manifest, const std::string& checkpoint) {
  RunMetadata metadata = metadata_from_json(manifest.metadata, checkpoint);
  const fs::path folder = fs::absolute(checkpoint).lexically_normal();
  TrainConfig& run = metadata.settings;
  // Earlier versions recorded a tokenizer that came with a relative --model as it was given.
  const bool relative =
      !run.tokenizer.empty() && run.tokenizer != kByteTokenizer && fs::path(run.tokenizer).is_relative();
  if (relative && !metadata.model_folder.empty()) run.tokenizer = metadata.model_folder;
  const fs::path checkpoints = (folder.has_filename() ? folder : folder.parent_path()).parent_path();
  if (checkpoints.filename() != "checkpoints") return metadata;  // alone: it was not moved with its run
  const std::string run_folder = checkpoints.parent_path().string();
  for (std::string* place : {&run.model, &run.finetune, &run.tokenizer, &metadata.model_folder})
    *place = find_moved(*place, run.save, run_folder);
  return metadata;
}

}  // namespace agoq::train
