// Text to token ids and back for prompts and samples: the built-in byte tokenizer, or a Hugging Face one through
// Python.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace agoq::cli {

class TextTokens {
 public:
  virtual ~TextTokens() = default;
  virtual std::vector<int32_t> encode(const std::string& text) = 0;
  // The text that one more token adds; empty while a character is incomplete.
  virtual std::string decode_next(int32_t id) = 0;
  // What is left once there are no more tokens.
  virtual std::string decode_rest() = 0;
};

// `tokenizer`: a folder or tokenizer.json; empty: bytes.
std::unique_ptr<TextTokens> open_tokenizer(const std::string& tokenizer);
// Whether a Hugging Face folder brings a tokenizer.
bool has_tokenizer(const std::string& folder);

}  // namespace agoq::cli
