#include "cli/text_tokens.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "cli/line_process.h"
#include "cli/python.h"

namespace agoq::cli {
namespace {

class ByteTokens : public TextTokens {
 public:
  std::vector<int32_t> encode(const std::string& text) override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }
  std::string decode_next(int32_t id) override { return id < 256 ? std::string(1, static_cast<char>(id)) : ""; }
  std::string decode_rest() override { return {}; }
};

LineProcess start(const std::string& tokenizer, const char* action) {
  const Python python = find_python();
  set_python_path(python);
  return LineProcess(python_command(python, "tokenizer", {"--tokenizer", tokenizer, "--json-lines", action}));
}

// A token's text depends on its neighbours (spaces, split characters), so all ids so far are decoded and the growth
// is shown.
class PythonTokens : public TextTokens {
 public:
  explicit PythonTokens(const std::string& tokenizer) : tokenizer_(tokenizer), decoder_(start(tokenizer, "decode")) {}

  std::vector<int32_t> encode(const std::string& text) override {
    LineProcess encoder = start(tokenizer_, "encode");
    std::istringstream words(encoder.ask(nlohmann::json(text).dump()));
    std::vector<int32_t> ids;
    for (int32_t id = 0; words >> id;) ids.push_back(id);
    return ids;
  }

  std::string decode_next(int32_t id) override {
    ids_ += (ids_.empty() ? "" : " ") + std::to_string(id);
    text_ = nlohmann::json::parse(decoder_.ask(ids_)).get<std::string>();
    const bool incomplete = text_.ends_with("\xef\xbf\xbd");  // U+FFFD: bytes of a character are still to come
    return incomplete ? "" : decode_rest();
  }

  std::string decode_rest() override {
    std::string fresh = shown_ < text_.size() ? text_.substr(shown_) : "";
    shown_ = text_.size();
    return fresh;
  }

 private:
  std::string tokenizer_;
  LineProcess decoder_;
  std::string ids_, text_;
  size_t shown_ = 0;
};

}  // namespace

std::unique_ptr<TextTokens> open_tokenizer(const std::string& tokenizer) {
  if (tokenizer.empty() || tokenizer == "byte") return std::make_unique<ByteTokens>();
  return std::make_unique<PythonTokens>(tokenizer);
}

bool has_tokenizer(const std::string& folder) {
  std::error_code ignored;
  for (const char* file : {"tokenizer.json", "vocab.json"})
    if (std::filesystem::exists(std::filesystem::path(folder) / file, ignored)) return true;
  return false;
}

}  // namespace agoq::cli
