#include "train/tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "train/dataset.h"
#include "train/token_file.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kLongestDescription = 1 << 20;  // what is longer is somebody's data
constexpr const char* kMark = "agoq_tokenizer";  // in the config.json of an export

bool is_bytes(const std::string& tokenizer) {
  return tokenizer == kByteTokenizer;
}

bool alike(const std::string& a, const std::string& b) {
  return is_bytes(a) == is_bytes(b);
}

std::string tokens_of(const std::string& tokenizer) {
  return is_bytes(tokenizer) ? "bytes" : "tokens of " + tokenizer;
}

std::optional<DataDescription> read_description(const std::string& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error) || fs::file_size(path, error) > kLongestDescription || error)
    return std::nullopt;
  const MappedFile file(path);
  const Json json = Json::parse(file.bytes().begin(), file.bytes().end(), nullptr, false);
  const auto has = [&](const char* key, Json::value_t type) { return json.contains(key) && json[key].type() == type; };
  if (!json.is_object() || !has("tokenizer", Json::value_t::string) ||
      !has("vocab_size", Json::value_t::number_unsigned))
    return std::nullopt;
  DataDescription data{json["tokenizer"], json["vocab_size"], -1};
  if (has("eod_id", Json::value_t::number_unsigned)) data.eod_token = json["eod_id"];
  return data;
}

// What is known of the data; its parts must agree.
struct KnownData {
  std::string path;  // of the first part of which something is known
  DataDescription tokens;
};

std::optional<KnownData> describe_all(const TrainConfig& config, const model::ModelConfig& model) {
  std::optional<KnownData> known;
  for (const auto* words : {&config.data_path, &config.valid_data_path}) {
    if (words->empty()) continue;
    for (const WeightedPath& part : parse_data_path(*words)) {
      const auto tokens = describe_data(part.path);
      if (!tokens) continue;
      require(
          tokens->vocab_size <= model.vocab_size,
          "{} holds {}, a vocabulary of {}, and the model has one of {}: take the model's own tokenizer (agoq data), "
          "or a model with at least {}",
          part.path, tokens_of(tokens->tokenizer), tokens->vocab_size, model.vocab_size, tokens->vocab_size);
      if (!known) known = {part.path, *tokens};
      require(alike(tokens->tokenizer, known->tokens.tokenizer),
              "{} holds {}, and {} holds {}: one run cannot read both", known->path, tokens_of(known->tokens.tokenizer),
              part.path, tokens_of(tokens->tokenizer));
      require(config.eod_token >= 0 || tokens->eod_token == known->tokens.eod_token,
              "documents end with token {} in {} and with {} in {}: say by --eod-token which one counts",
              known->tokens.eod_token, known->path, tokens->eod_token, part.path);
    }
  }
  return known;
}

int64_t eos_of(const model::ModelConfig& model) {
  const Json json = Json::parse(model.original_json, nullptr, false);
  if (!json.is_object() || !json.contains("eos_token_id")) return -1;
  const Json& eos = json["eos_token_id"];
  const Json& first = eos.is_array() && !eos.empty() ? eos[0] : eos;
  return first.is_number_integer() ? first.get<int64_t>() : -1;
}

}  // namespace

std::optional<DataDescription> describe_data(const std::string& path) {
  const TokenFilePlace place = find_token_file(path);
  if (place.format == TokenFormat::Text)
    return DataDescription{std::string(kByteTokenizer), kByteTokenizerVocab, kByteTokenizerEod};
  if (place.format == TokenFormat::Flat) return std::nullopt;
  return read_description(fs::path(place.data).replace_extension(".json").string());
}

std::string tokenizer_in(const std::string& folder, const model::ModelConfig& model) {
  const Json json = Json::parse(model.original_json, nullptr, false);
  if (json.is_object() && json.value(kMark, Json()) == kByteTokenizer) return std::string(kByteTokenizer);
  std::error_code ignored;
  for (const char* file : {"tokenizer.json", "vocab.json"})
    if (!folder.empty() && fs::exists(fs::path(folder) / file, ignored)) return folder;
  return {};
}

model::ModelConfig marked_as_bytes(model::ModelConfig model) {
  Json json = Json::parse(model::config_to_json(model));
  json[kMark] = kByteTokenizer;
  json["eos_token_id"] = kByteTokenizerEod;
  model.original_json = json.dump();
  return model;
}

void settle_tokenizer(TrainConfig& c, const model::ModelConfig& model, const std::string& of_model) {
  const auto data = describe_all(c, model);
  const std::string of_data = data ? data->tokens.tokenizer : "";
  if (data && !c.tokenizer.empty())
    require(alike(c.tokenizer, of_data),
            "{} holds {}, and the tokenizer is {}: `agoq data` makes tokens of the right kind", data->path,
            tokens_of(of_data), c.tokenizer);
  else if (data && !of_model.empty())
    require(alike(of_model, of_data),
            "{} holds {}, and the model knows {}: tokenize it for the model (agoq data --tokenizer {}), or train on it "
            "all the same with --tokenizer {}",
            data->path, tokens_of(of_data), tokens_of(of_model), of_model, of_data);
  if (c.tokenizer.empty()) c.tokenizer = of_model.empty() || is_bytes(of_data) ? of_data : of_model;
  if (c.eod_token >= 0) return;
  if (is_bytes(c.tokenizer))
    c.eod_token = kByteTokenizerEod;
  else
    c.eod_token = data && data->tokens.eod_token >= 0 ? data->tokens.eod_token : eos_of(model);
}

}  // namespace agoq::train
