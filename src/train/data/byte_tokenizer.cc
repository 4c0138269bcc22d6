#include "train/data/byte_tokenizer.h"

#include <nlohmann/json.hpp>
#include <string>

#include "train/data/token_file.h"

namespace agoq::train {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kEndOfText = "<|endoftext|>";
constexpr int kBytes = 256;

// A code point below 0x800 as UTF-8.
std::string utf8(int code) {
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

// How ByteLevel tokenizers write bytes: those that are printable in Latin-1 as themselves, the others in their order as
// the characters from U+0100 on.
Json byte_vocabulary() {
  const auto is_printable = [](int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
  };
  Json vocabulary;
  int next = kBytes;
  for (int byte = 0; byte < kBytes; ++byte) vocabulary[utf8(is_printable(byte) ? byte : next++)] = byte;
  return vocabulary;
}

Json byte_level() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
}

}  // namespace

model::Companions byte_tokenizer_files() {
  Json tokenizer = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  tokenizer["added_tokens"] = Json::array({{{"id", kByteTokenizerEod},
                                            {"content", kEndOfText},
                                            {"single_word", false},
                                            {"lstrip", false},
                                            {"rstrip", false},
                                            {"normalized", false},
                                            {"special", true}}});
  tokenizer["normalizer"] = nullptr;
  tokenizer["pre_tokenizer"] = byte_level();
  tokenizer["post_processor"] = nullptr;
  tokenizer["decoder"] = byte_level();
  tokenizer["model"] = {{"type", "BPE"},
                        {"dropout", nullptr},
                        {"unk_token", nullptr},
                        {"continuing_subword_prefix", nullptr},
                        {"end_of_word_suffix", nullptr},
                        {"fuse_unk", false},
                        {"byte_fallback", false},
                        {"ignore_merges", false},
                        {"vocab", byte_vocabulary()},
                        {"merges", Json::array()}};
  // A text that holds the characters of the end token is bytes like any other.
  const Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                       {"eos_token", kEndOfText},
                       {"split_special_tokens", true},
                       {"clean_up_tokenization_spaces", false}};
  return {{"tokenizer.json", tokenizer.dump(1) + "\n"}, {"tokenizer_config.json", config.dump(2) + "\n"}};
}

}  // namespace agoq::train
