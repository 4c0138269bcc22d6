#include "cli/text_tokens.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "cli/line_process.h"
#include "cli/python.h"
#include "train/token_file.h"

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

// A token's text depends on its neighbours (spaces, split characters), so all ids so far are decoded and the growth
// is shown.
class PythonTokens : public TextTokens {
 public:
  explicit PythonTokens(std::string tokenizer) : tokenizer_(std::move(tokenizer)), python_(find_python()) {
    set_python_path(python_);
  }

  std::vector<int32_t> encode(const std::string& text) override {
    LineProcess encoder(command("encode"));
    std::istringstream words(encoder.ask(nlohmann::json(text).dump()));
    std::vector<int32_t> ids;
    for (int32_t id = 0; words >> id;) ids.push_back(id);
    return ids;
  }

  std::string decode_next(int32_t id) override {
    ids_ += (ids_.empty() ? "" : " ") + std::to_string(id);
    if (!decoder_) decoder_.emplace(command("decode"));
    text_ = nlohmann::json::parse(decoder_->ask(ids_)).get<std::string>();
    const bool incomplete = text_.ends_with("\xef\xbf\xbd");  // U+FFFD: bytes of a character are still to come
    return incomplete ? "" : decode_rest();
  }

  std::string decode_rest() override {
    std::string fresh = shown_ < text_.size() ? text_.substr(shown_) : "";
    shown_ = text_.size();
    return fresh;
  }

 private:
  std::vector<std::string> command(const char* action) const {
    return python_command(python_, "tokenizer", {"--tokenizer", tokenizer_, "--json-lines", action});
  }

  std::string tokenizer_;
  Python python_;
  std::optional<LineProcess> decoder_;  // from the first token on
  std::string ids_, text_;
  size_t shown_ = 0;
};

}  // namespace

std::unique_ptr<TextTokens> open_tokenizer(const std::string& tokenizer) {
  require(!tokenizer.empty(),
          "nothing says which tokenizer this model's tokens belong to: give --tokenizer FOLDER, or "
          "--tokenizer byte");
  if (tokenizer == train::kByteTokenizer) return std::make_unique<ByteTokens>();
  return std::make_unique<PythonTokens>(tokenizer);
}

void continue_text(parallel::TrainingState& state, const std::vector<int32_t>& prompt,
                   const train::SamplingOptions& options, TextTokens& tokenizer,
                   const std::function<bool(const std::string&)>& show) {
  train::generate(state, prompt, options, [&](int32_t id) { return show(tokenizer.decode_next(id)); });
  show(tokenizer.decode_rest());
}

}  // namespace agoq::cli
