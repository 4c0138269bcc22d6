// Text to token ids and back for prompts and samples: the built-in byte tokenizer, or a Hugging Face one through
// Python.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "train/inference.h"

namespace agoq::cli {

// The pieces of text that come out are whole characters, and joined they are what all ids decode to at once. Ids that
// stand for no token, as a model with a padded vocabulary makes them, are no text.
class TextTokens {
 public:
  virtual ~TextTokens() = default;
  virtual std::vector<int32_t> encode(const std::string& prompt) = 0;  // what is decoded continues it
  // The text that one more token adds; empty while it may still change.
  virtual std::string decode_next(int32_t id) = 0;
  // What is left once there are no more tokens.
  virtual std::string decode_rest() = 0;
};

// `tokenizer`: "byte", a folder or a tokenizer.json; an error if it is empty, that is, not known. `bos`: whether a
// prompt begins with the bos token, as the setting prompt-bos has it.
std::unique_ptr<TextTokens> open_tokenizer(const std::string& tokenizer, const std::string& bos);

// The model continues the tokens of a prompt; `show` gets the new text piece by piece and ends it by false.
void continue_text(parallel::TrainingState& state, const std::vector<int32_t>& prompt,
                   const train::SamplingOptions& options, TextTokens& tokenizer,
                   const std::function<bool(const std::string&)>& show);

}  // namespace agoq::cli
