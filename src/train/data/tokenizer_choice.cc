#include "train/data/tokenizer_choice.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "train/coordinator.h"
#include "train/data/dataset.h"
#include "train/data/token_file.h"
#include "train/data/vocabulary.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kLongestDescription = 1 << 20;  // what is longer is somebody's data
constexpr const char* kMark = "agoq_tokenizer";  // in the config.json of an export

bool is_bytes(const std::string& tokenizer) {
  return tokenizer == kByteTokenizer;
}

// A tokenizer and what it makes.
struct Tokens {
  std::string tokenizer, vocabulary;
  bool known() const { return !tokenizer.empty(); }
};

// Not alike where it is known that they differ.
bool alike(const Tokens& a, const Tokens& b) {
  if (!a.vocabulary.empty() && !b.vocabulary.empty()) return a.vocabulary == b.vocabulary;
  return is_bytes(a.tokenizer) == is_bytes(b.tokenizer);
}

// Whether these are, for all that is known, the tokens that the model came with.
bool may_be_own(const Tokens& of_model, const Tokens& taken) {
  return !of_model.known() || !taken.known() || alike(of_model, taken);
}

std::string text_of(const Tokens& t) {
  if (is_bytes(t.tokenizer)) return "bytes";
  return "tokens of " + t.tokenizer + (t.vocabulary.empty() ? "" : " (vocabulary " + t.vocabulary + ")");
}

Tokens with_hash(const std::string& tokenizer, const std::string& recorded = {}) {
  if (tokenizer.empty() || !recorded.empty()) return {tokenizer, recorded};
  return {tokenizer, vocabulary_hash(tokenizer).value_or("")};
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
  if (has("vocabulary", Json::value_t::string)) data.vocabulary = json["vocabulary"];
  if (is_bytes(data.tokenizer)) data.vocabulary = with_hash(data.tokenizer).vocabulary;
  if (has("prepend_bos", Json::value_t::boolean)) data.prepend_bos = json["prepend_bos"].get<bool>();
  return data;
}

// What is known of the data; its parts must agree.
struct KnownData {
  std::string path;  // of the first part of which something is known
  std::optional<DataDescription> tokens;
  std::string text;                 // a part that is text; or empty
  std::vector<std::string> silent;  // parts that do not tell their vocabulary
};

Tokens tokens_in(const DataDescription& data) {
  return {data.tokenizer, data.vocabulary};
}

void add_part(KnownData& known, const std::string& path, const TrainConfig& config, const model::ModelConfig& model) {
  const auto tokens = describe_data(path);
  if (!tokens || tokens->vocabulary.empty()) known.silent.push_back(path);
  if (!tokens) return;
  if (find_token_file(path).format == TokenFormat::Text) known.text = path;
  require(tokens->vocab_size <= model.vocab_size,
          "{} holds {}, a vocabulary of {}, and the model has one of {}: take the model's own tokenizer (agoq data), "
          "or a model with at least {}",
          path, text_of(tokens_in(*tokens)), tokens->vocab_size, model.vocab_size, tokens->vocab_size);
  if (!known.tokens) {
    known.tokens = tokens;
    known.path = path;
  }
  DataDescription& first = *known.tokens;
  require(alike(tokens_in(*tokens), tokens_in(first)), "{} holds {}, and {} holds {}: one run cannot read both",
          known.path, text_of(tokens_in(first)), path, text_of(tokens_in(*tokens)));
  require(config.eod_token >= 0 || tokens->eod_token == first.eod_token,
          "documents end with token {} in {} and with {} in {}: say by --eod-token which one counts", first.eod_token,
          known.path, tokens->eod_token, path);
  const std::optional<bool> begin = tokens->prepend_bos == first.prepend_bos ? first.prepend_bos : std::nullopt;
  if (first.vocabulary.empty()) {  // the first that tells it, so that all others are compared with that
    first = *tokens;
    known.path = path;
  }
  first.prepend_bos = begin;
}

KnownData describe_all(const TrainConfig& config, const model::ModelConfig& model) {
  KnownData known;
  for (const auto* words : {&config.data_path, &config.valid_data_path})
    if (!words->empty())
      for (const WeightedPath& part : parse_data_path(*words)) add_part(known, part.path, config, model);
  return known;
}

void require_same_tokens(const KnownData& data, const Tokens& asked, const Tokens& own) {
  if (!data.tokens) return;
  const Tokens held = tokens_in(*data.tokens);
  if (asked.known())
    require(alike(asked, held), "{} holds {}, and the tokenizer is {}: `agoq data` makes tokens of the right kind",
            data.path, text_of(held), text_of(asked));
  else if (own.known())
    require(alike(own, held),
            "{} holds {}, and the model knows {}: tokenize it for the model (agoq data --tokenizer {}), or train on it "
            "all the same with --tokenizer {}",
            data.path, text_of(held), text_of(own), own.tokenizer, held.tokenizer);
}

std::string warning_about(const KnownData& data, const Tokens& taken) {
  if (data.silent.empty()) return {};
  return fmt::format(
      "nothing tells which vocabulary the tokens in {} belong to (`agoq data` writes it into PREFIX.json); "
      "taken for {}",
      fmt::join(data.silent, ", "), taken.known() ? text_of(taken) : "the model's");
}

// The other way round: a model that has learned tokens and does not tell which, and data that tells its own.
std::string warning_about(const ModelTokens& of_model, const Tokens& own, const KnownData& data) {
  if (of_model.model.empty() || !own.vocabulary.empty() || !data.tokens || data.tokens->vocabulary.empty()) return {};
  return fmt::format("nothing tells which vocabulary {} has learned (no tokenizer.json); taken for that of {}: {}",
                     of_model.model, data.path, text_of(tokens_in(*data.tokens)));
}

void add_eos(const Json& config, std::vector<int32_t>& ids) {
  if (!config.is_object() || !config.contains("eos_token_id")) return;
  const Json& eos = config["eos_token_id"];
  for (const Json& id : eos.is_array() ? eos : Json::array({eos}))
    if (id.is_number_unsigned() && id.get<uint64_t>() <= std::numeric_limits<int32_t>::max()) ids.push_back(id);
}

std::vector<int32_t> eos_of(const model::ModelConfig& model) {
  std::vector<int32_t> ids;
  add_eos(Json::parse(model.original_json, nullptr, false), ids);
  return ids;
}

}  // namespace

std::optional<DataDescription> describe_data(const std::string& path) {
  const TokenFilePlace place = find_token_file(path);
  if (place.format == TokenFormat::Text)
    return DataDescription{std::string(kByteTokenizer), kByteTokenizerVocab, kByteTokenizerEod,
                           vocabulary_hash(std::string(kByteTokenizer)).value()};
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

model::ModelConfig ending_with(model::ModelConfig model, int64_t eos) {
  Json json = Json::parse(model::config_to_json(model));
  json["eos_token_id"] = eos < 0 ? Json() : Json(eos);
  model.original_json = json.dump();
  return model;
}

model::ModelConfig marked_as_bytes(model::ModelConfig model) {
  model = ending_with(std::move(model), kByteTokenizerEod);
  Json json = Json::parse(model.original_json);
  json[kMark] = kByteTokenizer;
  model.original_json = json.dump();
  return model;
}

SettledTokenizer settle_tokenizer(TrainConfig& c, const model::ModelConfig& model, const ModelTokens& of_model) {
  const KnownData data = describe_all(c, model);
  const Tokens asked = with_hash(c.tokenizer);
  const Tokens own = with_hash(of_model.tokenizer, of_model.vocabulary);
  const Tokens held = data.tokens ? tokens_in(*data.tokens) : Tokens{};
  require_same_tokens(data, asked, own);
  require(data.text.empty() || asked.known() || own.known() || of_model.model.empty(),
          "{} is text, and {} brings no tokenizer (tokenizer.json) to read it with: tokenize it for the model "
          "(agoq data), or, if the model's tokens are bytes, say so with --tokenizer byte",
          data.text, of_model.model);
  Tokens taken = asked.known() ? asked : own.known() && !is_bytes(held.tokenizer) ? own : held;
  if (taken.vocabulary.empty()) taken.vocabulary = held.vocabulary;
  c.tokenizer = taken.tokenizer;
  if (c.prompt_bos == "auto" && data.tokens && data.tokens->prepend_bos)
    c.prompt_bos = *data.tokens->prepend_bos ? "always" : "never";
  if (c.eod_token < 0 && is_bytes(c.tokenizer)) c.eod_token = kByteTokenizerEod;
  if (c.eod_token < 0 && data.tokens) c.eod_token = data.tokens->eod_token;
  const bool own_tokens = may_be_own(own, taken);
  if (const auto eos = eos_of(model); own_tokens && c.eod_token < 0 && !eos.empty()) c.eod_token = eos[0];
  std::vector<std::string> warnings;
  for (std::string warning : {warning_about(data, taken), asked.known() ? "" : warning_about(of_model, own, data)})
    if (!warning.empty()) warnings.push_back(std::move(warning));
  return {taken.vocabulary, fmt::format("{}", fmt::join(warnings, "; ")), own_tokens};
}

bool know_other_tokens(const std::string& tokenizer, const std::string& model_folder) try {
  const Tokens of_model = with_hash(model_folder);
  return !of_model.vocabulary.empty() && !may_be_own(of_model, with_hash(tokenizer));
} catch (const Error&) {
  return false;  // of a tokenizer that cannot be read nothing is known
}

void require_own_tokens(const TrainConfig& c, const ModelTokens& of_model) {
  if (c.tokenizer.empty() || of_model.tokenizer.empty() || c.tokenizer == of_model.tokenizer) return;
  const Tokens asked = with_hash(c.tokenizer), own = with_hash(of_model.tokenizer, of_model.vocabulary);
  require(alike(asked, own), "{} knows {}, and --tokenizer gives {}: leave --tokenizer out, or name the model's",
          of_model.model, text_of(own), text_of(asked));
}

std::vector<int32_t> stop_tokens(const TrainConfig& c, const model::ModelConfig& model, const std::string& folder) {
  std::vector<int32_t> ids;
  if (c.eod_token >= 0) ids.push_back(static_cast<int32_t>(c.eod_token));
  if (!is_bytes(c.tokenizer)) {  // otherwise the model's eos is another tokenizer's
    const std::vector<int32_t> eos = eos_of(model);
    ids.insert(ids.end(), eos.begin(), eos.end());
    std::error_code ignored;
    const fs::path file = fs::path(folder) / "generation_config.json";
    if (!folder.empty() && fs::is_regular_file(file, ignored)) {
      const MappedFile text(file.string());
      add_eos(Json::parse(text.bytes().begin(), text.bytes().end(), nullptr, false), ids);
    }
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::vector<int32_t> common_stop_tokens(const Coordinator& coordinator, const TrainConfig& c,
                                        const model::ModelConfig& model, const std::string& folder) {
  return Json::parse(coordinator.broadcast(coordinator.is_rank0() ? Json(stop_tokens(c, model, folder)).dump() : ""));
}

}  // namespace agoq::train
