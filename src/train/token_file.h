// A stream of tokens in a file, mapped into memory: opened in no time whatever its size. Three kinds of file:
//   Megatron-LM  PREFIX.bin with PREFIX.idx, and optionally PREFIX.mask: one byte a token, 0 where it is no target
//   (prompts) flat         NAME.bin without an index: uint16 or int32 tokens, nothing else text         anything else:
//   UTF-8, tokenized byte by byte (ids 0..255) with id 256 behind each document
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/mapped_file.h"

namespace agoq::train {

inline constexpr std::string_view kByteTokenizer = "byte";  // how the built-in tokenizer is called
inline constexpr int32_t kByteTokenizerEod = 256;
inline constexpr int64_t kByteTokenizerVocab = 257;

enum class TokenFormat : uint8_t { Megatron, Flat, Text };
std::string_view name_of(TokenFormat format);

struct TokenFilePlace {
  TokenFormat format;
  std::string data;  // the file with the tokens, or with the text
};
// `path` is a file, or a PREFIX, PREFIX.bin or PREFIX.idx of Megatron-LM; an error if there is no such file.
TokenFilePlace find_token_file(const std::string& path);

struct TokenFileOptions {
  int64_t vocab_size = 0;               // ids must lie below it; 0: any id that fits in 31 bits
  DType data_dtype = DType::U16;        // of flat files: U16 or I32
  std::string document_separator = {};  // of text: a line with exactly this ends a document; empty: one document
};

// Stream tokens [first, first + length) are elements [element, element + length) of the data file.
struct TokenRun {
  uint64_t first = 0;
  uint64_t element = 0;
  uint64_t length = 0;
};

// What a Megatron-LM index says about its .bin. Sequences that lie one behind the other are joined to one run.
struct MegatronIndex {
  uint64_t element_size = 0;  // 1, 2, 4 or 8 bytes
  uint64_t sequences = 0;
  uint64_t documents = 0;
  uint64_t tokens = 0;
  std::vector<TokenRun> runs;
};

// Checks every entry against the index's own size and the size of the .bin. `path` is for messages.
MegatronIndex parse_megatron_index(std::span<const uint8_t> index, std::string_view path, uint64_t bin_bytes);

class TokenFile {
 public:
  TokenFile(const std::string& path, const TokenFileOptions& options);

  const std::string& path() const { return data_.path(); }
  TokenFormat format() const { return format_; }
  uint64_t token_count() const { return tokens_; }
  uint64_t document_count() const { return documents_; }  // 0: unknown (flat files)
  bool has_mask() const { return mask_.has_value(); }

  // Tokens [first, first + out.size()). An id outside the vocabulary is an error that names its place.
  void read(uint64_t first, std::span<int32_t> out) const;
  // 1 where a token is a target, 0 where it is not; 1 everywhere without a mask.
  void read_mask(uint64_t first, std::span<float> out) const;

  // Changes with the number of tokens and, all but surely, with the tokens themselves: hashes samples of the file.
  uint64_t fingerprint() const;

 private:
  void open_megatron(const std::string& prefix);
  void open_flat(DType dtype);
  void open_text(const std::string& separator);
  void add_document(uint64_t begin, uint64_t end);
  void read_elements(uint64_t first, uint64_t element, std::span<int32_t> out) const;
  template <class T>
  void widen(uint64_t first, uint64_t element, std::span<int32_t> out) const;
  // Calls piece(position in the range, element, length) for the parts of [first, first + count) that the file holds.
  template <class Piece>
  void for_each_piece(uint64_t first, uint64_t count, Piece piece) const;

  TokenFormat format_;
  int64_t vocab_size_;
  MappedFile data_;
  std::optional<MappedFile> mask_;
  uint64_t element_size_ = 1;
  uint64_t tokens_ = 0;
  uint64_t documents_ = 0;
  std::vector<TokenRun> runs_;  // by first token; in text, each is followed by one end-of-document token
};

}  // namespace agoq::train
