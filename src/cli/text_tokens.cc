#include "cli/text_tokens.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "base/utf8_stream.h"
#include "cli/line_process.h"
#include "cli/python.h"
#include "train/data/token_file.h"

namespace agoq::cli {
namespace {

class ByteTokens : public TextTokens {
 public:
  std::vector<int32_t> encode(const std::string& prompt) override {
    text_ = {};
    std::vector<int32_t> ids;
    for (const char c : prompt) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }
  std::string decode_next(int32_t id) override { return id < 256 ? text_.add(static_cast<uint8_t>(id)) : ""; }
  std::string decode_rest() override { return text_.rest(); }

 private:
  Utf8Stream text_;
};

class PythonTokens : public TextTokens {
 public:
  PythonTokens(std::string tokenizer, std::string bos)
      : tokenizer_(std::move(tokenizer)), bos_(std::move(bos)), python_(find_python()) {}

  std::vector<int32_t> encode(const std::string& prompt) override {
    stream_.emplace(python_command(python_, "tokenizer", {"--tokenizer", tokenizer_, "--bos", bos_, "stream"}));
    std::istringstream words(stream_->ask(nlohmann::json(prompt).dump()));
    std::vector<int32_t> ids;
    for (int32_t id = 0; words >> id;) ids.push_back(id);
    require(!ids.empty(), "the tokenizer {} makes no token of the prompt; give another", tokenizer_);
    return ids;
  }

  std::string decode_next(int32_t id) override { return answer(std::to_string(id)); }
  std::string decode_rest() override { return answer(""); }

 private:
  std::string answer(const std::string& line) {
    return nlohmann::json::parse(stream_.value().ask(line)).get<std::string>();
  }

  std::string tokenizer_, bos_;
  Python python_;
  std::optional<LineProcess> stream_;
};

}  // namespace

std::unique_ptr<TextTokens> open_tokenizer(const std::string& tokenizer, const std::string& bos) {
  require(!tokenizer.empty(),
          "nothing says which tokenizer this model's tokens belong to: give --tokenizer FOLDER, or "
          "--tokenizer byte");
  if (tokenizer == train::kByteTokenizer) return std::make_unique<ByteTokens>();
  return std::make_unique<PythonTokens>(tokenizer, bos);
}

void continue_text(parallel::TrainingState& state, const std::vector<int32_t>& prompt,
                   const train::SamplingOptions& options, TextTokens& tokenizer,
                   const std::function<bool(const std::string&)>& show) {
  train::generate(state, prompt, options, [&](int32_t id) { return show(tokenizer.decode_next(id)); });
  show(tokenizer.decode_rest());
}

}  // namespace agoq::cli
