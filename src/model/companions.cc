#include "model/companions.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string_view>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/text.h"

namespace agoq::model {
namespace {

namespace fs = std::filesystem;

// A name, or an ending where it begins with '*' (GPT-2 files are called gpt2-vocab.json).
using Names = std::span<const std::string_view>;
constexpr auto kVocabulary = std::to_array<std::string_view>({"tokenizer.json", "*vocab.json"});
constexpr auto kTokenizer = std::to_array<std::string_view>(
    {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*merges.txt", "*vocab.bpe", "vocab.txt",
     "tokenizer.model", "tokenizer.model.v3", "sentencepiece.bpe.model", "spiece.model", "tekken.json", "*.tiktoken",
     "chat_template.jinja", "chat_template.json"});
constexpr auto kTemplates = std::to_array<std::string_view>({"*.jinja"});
constexpr auto kGeneration = std::to_array<std::string_view>({"generation_config.json"});
constexpr auto kLicences =
    std::to_array<std::string_view>({"LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md",
                                     "COPYING", "NOTICE", "NOTICE.txt", "USE_POLICY.md"});
constexpr const char* kTemplatesFolder = "additional_chat_templates";

bool is_on(Names list, std::string_view name) {
  return std::any_of(list.begin(), list.end(), [&](std::string_view known) {
    return known.starts_with('*') ? name.ends_with(known.substr(1)) : name == known;
  });
}

std::string read(const fs::path& path) {
  const MappedFile file(path.string());
  return {reinterpret_cast<const char*>(file.bytes().data()), file.size()};
}

bool lies_in(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

// What a name in a folder stands for, links followed; none if that is no regular file, or lies elsewhere. The download
// cache of huggingface_hub counts as one folder: models--X/snapshots/REVISION/NAME is a link to models--X/blobs/HASH.
std::optional<fs::path> real_file(const fs::path& root, const fs::path& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error || !fs::is_regular_file(real, error)) return std::nullopt;
  const fs::path revisions = root.parent_path();
  const bool cached = revisions.filename() == "snapshots" && lies_in(real, revisions.parent_path() / "blobs");
  if (lies_in(real, root) || cached) return real;
  log_warning("{} is a link to {}, out of its folder: it is not copied; put the file itself there", path.string(),
              real.string());
  return std::nullopt;
}

// Files of a folder under `root` that are on the list, by name.
void collect(const fs::path& root, const fs::path& folder, Names list, const std::string& prefix, Companions& found) {
  std::error_code error;
  std::set<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error))
    if (is_on(list, entry.path().filename().string())) names.insert(entry.path().filename().string());
  for (const std::string& name : names)
    if (const auto real = real_file(root, folder / name)) found.push_back({prefix + name, read(*real)});
}

Companions files_of(const fs::path& folder, std::initializer_list<Names> lists) {
  Companions found;
  std::error_code error;
  const fs::path root = fs::canonical(folder, error);
  if (error || !fs::is_directory(root, error)) return found;
  for (const Names list : lists) collect(root, root, list, "", found);
  return found;
}

void add_templates(const fs::path& folder, Companions& found) {
  std::error_code error;
  const fs::path root = fs::canonical(folder, error);
  const fs::path templates = fs::canonical(root / kTemplatesFolder, error);
  if (!error && lies_in(templates, root))
    collect(root, templates, kTemplates, std::string(kTemplatesFolder) + "/", found);
}

// A file of any name goes as tokenizer.json, so it must be one.
bool is_tokenizer(const std::string& content) {
  const auto json = nlohmann::json::parse(content, nullptr, false);
  return json.is_object() && json.contains("model") && json["model"].is_object() && json["model"].contains("vocab");
}

}  // namespace

Companions tokenizer_files(const fs::path& tokenizer) {
  std::error_code error;
  const bool is_file = fs::is_regular_file(tokenizer, error);
  const fs::path folder = is_file ? fs::absolute(tokenizer).parent_path() : tokenizer;
  Companions found;
  if (!is_file) {
    found = files_of(folder, {kVocabulary, kTokenizer});
  } else if (std::string content = read(tokenizer); is_tokenizer(content)) {
    found = files_of(folder, {kTokenizer});
    found.insert(found.begin(), {"tokenizer.json", std::move(content)});
  } else {
    log_warning("{} is no tokenizer.json: it is not copied", tokenizer.string());
    return found;
  }
  add_templates(folder, found);
  return found;
}

Companions generation_files(const fs::path& folder) {
  return files_of(folder, {kGeneration});
}

Companions licence_files(const fs::path& folder) {
  return files_of(folder, {kLicences});
}

bool has_tokenizer(const Companions& files) {
  return std::any_of(files.begin(), files.end(), [](const Companion& file) { return is_on(kVocabulary, file.name); });
}

std::string names_of(const Companions& files) {
  std::vector<std::string> names;
  for (const Companion& file : files) names.push_back(file.name);
  return join(names, ", ");
}

void write_companions(const Companions& files, const fs::path& folder) {
  for (const Companion& file : files) {
    const fs::path path = folder / file.name;
    if (path.parent_path() != folder) {
      std::error_code error;
      fs::create_directories(path.parent_path(), error);
      require(!error, "cannot create the folder {}: {}", path.parent_path().string(), error.message());
    }
    write_file_atomically(path.string(), file.content);
  }
}

}  // namespace agoq::model
