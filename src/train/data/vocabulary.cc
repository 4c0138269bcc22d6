#include "train/data/vocabulary.h"

#include <fmt/format.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"
#include "train/data/token_file.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;  // of small objects, whose order counts
using LargeJson = nlohmann::json;     // its objects are found by key in no time, however many entries they have

using Ids = std::map<std::string, int64_t>;

constexpr std::array kNamed = {"bos_token", "eos_token", "unk_token", "sep_token",
                               "pad_token", "cls_token", "mask_token"};
constexpr std::array kUsualEod = {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"};
constexpr const char* kExtra = "extra_special_tokens";
constexpr const char* kExtraOnce = "additional_special_tokens";  // its name in older files

std::string hash_of(const Ids& ids) {
  std::vector<std::pair<int64_t, std::string_view>> entries;
  entries.reserve(ids.size());
  for (const auto& [token, id] : ids) entries.emplace_back(id, token);
  std::sort(entries.begin(), entries.end());
  std::string text;
  for (const auto& [id, token] : entries) text += fmt::format("{} {}:{}\n", id, token.size(), token);
  std::array<uint8_t, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), digest.data());
  return fmt::format("{:02x}", fmt::join(std::span(digest).first(8), ""));
}

std::string hash_of_bytes() {
  Ids ids = {{"<|endoftext|>", kByteTokenizerEod}};
  for (int byte = 0; byte < kByteTokenizerEod; ++byte) ids[fmt::format("<0x{:02X}>", byte)] = byte;
  return hash_of(ids);
}

// As the tokenizers library numbers them: an added token that the model knows keeps its id, another gets the next one.
class Numbering {
 public:
  explicit Numbering(Ids of_model) : ids_(std::move(of_model)), next_(std::ssize(ids_)) {}
  int64_t add(const std::string& token) {
    const int64_t id = ids_.try_emplace(token, next_).first->second;
    next_ = std::max(next_, id + 1);
    return id;
  }
  bool knows(const std::string& token) const { return ids_.contains(token); }
  const Ids& ids() const { return ids_; }

 private:
  Ids ids_;
  int64_t next_;
};

// An empty object if there is no such file.
template <class AnyJson>
AnyJson read_object(const fs::path& path, const typename AnyJson::parser_callback_t& filter = nullptr) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return AnyJson::object();
  const MappedFile file(path.string());
  AnyJson json = AnyJson::parse(file.bytes().begin(), file.bytes().end(), filter, false);
  require(json.is_object(), "{}: not a JSON object, so no tokenizer can be read", path.string());
  return json;
}

template <class AnyJson>
const AnyJson& member(const AnyJson& json, const char* key) {
  static const AnyJson null;
  const auto found = json.find(key);  // the end, if it is no object
  return found == json.end() ? null : *found;
}

// The text of a token, which may be given with flags; empty if it is none.
template <class AnyJson>
std::string text_of(const AnyJson& token) {
  const AnyJson& text = token.is_object() ? member(token, "content") : token;
  return text.is_string() ? text.template get<std::string>() : "";
}

Ids ids_of(const LargeJson& vocabulary, const std::string& file) {
  Ids ids;
  try {
    if (vocabulary.is_array())  // Unigram: tokens with scores, in the order of their ids
      for (size_t id = 0; id < vocabulary.size(); ++id) ids[vocabulary[id].at(0)] = static_cast<int64_t>(id);
    else
      for (const auto& [token, id] : vocabulary.items()) ids[token] = id.get<int64_t>();
  } catch (const LargeJson::exception&) {
    ids.clear();
  }
  require(!ids.empty(), "{}: no vocabulary of strings and ids", file);
  return ids;
}

// What stands beside tokenizer.json, in the order of python/agoq/special_tokens.py, which says why.
class SideTokens {
 public:
  SideTokens(const fs::path& folder, std::string pad_token)
      : folder_(folder),
        config_(read_object<Json>(folder / "tokenizer_config.json")),
        pad_token_(std::move(pad_token)) {
    if (config_.contains("added_tokens_decoder")) return;
    map_ = read_object<Json>(folder / "special_tokens_map.json");
    added_ = read_object<Json>(folder / "added_tokens.json");
  }

  // `in_file`: the added tokens of tokenizer.json.
  void add_to(Numbering& numbering, const std::map<int64_t, std::string>& in_file) const {
    for (const auto& [id, token] : by_id(in_file)) add(numbering, token);
    const auto [named, extra] = split();
    for (const char* key : kNamed) add(numbering, text_of(member(named, key)));
    for (const auto& [key, token] : named.items()) add(numbering, text_of(token));
    for (const Json& token : extra) add(numbering, text_of(token));
  }

 private:
  static void add(Numbering& numbering, const std::string& token) {
    if (!token.empty()) numbering.add(token);
  }

  std::map<int64_t, std::string> by_id(const std::map<int64_t, std::string>& in_file) const {
    std::map<int64_t, std::string> tokens;
    try {
      if (config_.contains("added_tokens_decoder")) {
        for (const auto& [id, token] : config_["added_tokens_decoder"].items()) tokens[std::stoll(id)] = text_of(token);
        return tokens;
      }
      for (const auto& [token, id] : added_.items()) tokens[id.get<int64_t>()] = token;
    } catch (const std::exception&) {
      fail("{}: added_tokens_decoder in tokenizer_config.json, or added_tokens.json, is no object of tokens and ids",
           folder_.string());
    }
    for (const auto& [id, token] : in_file) tokens[id] = token;
    return tokens;
  }

  // Tokens that have a name, and the rest.
  std::pair<Json, Json> split() const {
    Json settings = config_;
    if (member(settings, kExtra).empty() && settings.contains(kExtraOnce)) {
      Json once = settings[kExtraOnce];
      settings.erase(kExtraOnce);
      settings[kExtra] = std::move(once);
    }
    Json groups = Json::object(), extra = Json::array();
    for (const Json& tokens : {member(settings, kExtra), member(map_, kExtra)}) {
      if (tokens.is_object()) groups.update(tokens);
      if (tokens.is_array()) extra.insert(extra.end(), tokens.begin(), tokens.end());
    }
    settings.update(map_);
    Json named = Json::object();
    for (const auto& [key, token] : settings.items())
      if (key.ends_with("_token") && !text_of(token).empty()) named[key] = token;
    if (!pad_token_.empty() && !named.contains("pad_token")) named["pad_token"] = pad_token_;
    named.update(groups);
    return {named, extra.empty() ? member(settings, kExtraOnce) : extra};
  }

  fs::path folder_;
  Json config_, map_ = Json::object(), added_ = Json::object();
  std::string pad_token_;
};

std::string hash_of_file(const fs::path& file) {
  // Merges are the larger part of a file, and not in the hash.
  const auto without_merges = [](int depth, LargeJson::parse_event_t event, const LargeJson& parsed) {
    return !(depth == 2 && event == LargeJson::parse_event_t::key && parsed == "merges");
  };
  const auto json = read_object<LargeJson>(file, without_merges);
  Numbering numbering(ids_of(member(member(json, "model"), "vocab"), file.string()));
  std::map<int64_t, std::string> in_file;
  for (const LargeJson& token : member(json, "added_tokens"))
    if (const std::string text = text_of(token); !text.empty()) in_file[numbering.add(text)] = text;
  SideTokens(file.parent_path(), text_of(member(member(json, "padding"), "pad_token"))).add_to(numbering, in_file);
  return hash_of(numbering.ids());
}

std::string hash_of_gpt2(const fs::path& vocabulary) {
  Numbering numbering(ids_of(read_object<LargeJson>(vocabulary), vocabulary.string()));
  std::map<int64_t, std::string> known;
  for (const char* token : kUsualEod)
    if (numbering.knows(token)) known[numbering.add(token)] = token;
  SideTokens(vocabulary.parent_path(), "").add_to(numbering, known);
  return hash_of(numbering.ids());
}

}  // namespace

std::optional<std::string> vocabulary_hash(const std::string& tokenizer) {
  if (tokenizer == kByteTokenizer) return hash_of_bytes();
  std::error_code ignored;
  const bool is_folder = fs::is_directory(tokenizer, ignored);
  const fs::path file = is_folder ? fs::path(tokenizer) / "tokenizer.json" : fs::path(tokenizer);
  if (fs::is_regular_file(file, ignored)) return hash_of_file(file);
  const fs::path gpt2 = file.parent_path() / "vocab.json";
  if (is_folder && fs::is_regular_file(gpt2, ignored)) return hash_of_gpt2(gpt2);
  return std::nullopt;
}

}  // namespace agoq::train
