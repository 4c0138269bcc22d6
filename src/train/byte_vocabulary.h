// The built-in tokenizer: a token is a byte of UTF-8 (0 to 255), or the end of a document.
#pragma once

#include <cstdint>
#include <string_view>

namespace agoq::train {

inline constexpr std::string_view kByteTokenizer = "byte";  // how the built-in tokenizer is called
inline constexpr int32_t kByteTokenizerEod = 256;
inline constexpr int64_t kByteTokenizerVocab = 257;

}  // namespace agoq::train
