// A stream of tokens in a file. Three kinds of file:
//
//   Megatron-LM  PREFIX.bin with PREFIX.idx, which stores where documents begin
//   flat         NAME.bin without an index: uint16 or int32 tokens, nothing else
//   text         anything else: UTF-8, tokenized byte by byte (ids 0..255) with id 256 behind each document
//
// Beside a .bin may lie a .mask: one byte a token, 0 where it is no target (prompts).
//
// Opening reads the whole file once (file_scan.h): every id and every byte of the mask is checked, and hashed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/positioned_file.h"
#include "train/byte_vocabulary.h"
#include "train/data/megatron_index.h"

namespace agoq::train {

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

class TokenFile {
 public:
  // Errors name the file, the place and the value of an id outside the vocabulary, or of a mask's byte above 1.
  TokenFile(const std::string& path, const TokenFileOptions& options);

  const std::string& path() const { return data_.path(); }
  TokenFormat format() const { return format_; }
  uint64_t token_count() const { return tokens_; }
  uint64_t document_count() const { return documents_; }  // 0: unknown (flat files)
  bool has_mask() const { return mask_.has_value(); }
  const std::string& mask_path() const { return mask_->path(); }

  // Tokens [first, first + out.size()).
  void read(uint64_t first, std::span<int32_t> out) const;
  // 1 where a token is a target, 0 where it is not; 1 everywhere without a mask.
  void read_mask(uint64_t first, std::span<float> out) const;
  // The first target of [first, end); none if there is none.
  std::optional<uint64_t> next_target(uint64_t first, uint64_t end) const;

  // Whether the file stores where documents begin. Where it does not, only an end-of-document token may tell.
  bool stores_borders() const { return format_ == TokenFormat::Megatron && documents_ > 0; }
  // Tokens in [first, end) with which a document begins, ascending; of a file that stores it.
  std::span<const uint64_t> document_starts(uint64_t first, uint64_t end) const;
  // Frees what document_starts() reads: 8 bytes for every document.
  void forget_borders() { document_starts_ = {}; }

  // Changes with the tokens, the mask, and how the index orders and divides them: XXH3 of all of it.
  uint64_t fingerprint() const { return fingerprint_; }
  // What checkpoints held before the whole file was read: samples of tokens and mask, not of the index.
  uint64_t sampled_fingerprint() const;

 private:
  void open_megatron(const std::string& prefix);
  void open_flat(DType dtype);
  void open_text(const std::string& separator);
  void open_mask(const std::string& prefix);
  void add_document(uint64_t begin, uint64_t end);
  void check_contents();
  void check_ids() const;
  void check_mask() const;
  int64_t id_limit() const;  // ids lie below it
  void read_elements(uint64_t first, uint64_t element, std::span<int32_t> out) const;
  template <class T>
  void widen(uint64_t first, uint64_t element, std::span<int32_t> out) const;
  // Calls piece(position in the range, element, length) for the parts of [first, first + count) that the file holds.
  template <class Piece>
  void for_each_piece(uint64_t first, uint64_t count, Piece piece) const;

  TokenFormat format_;
  int64_t vocab_size_;
  PositionedFile data_;
  std::optional<PositionedFile> mask_;
  uint64_t element_size_ = 1;
  uint64_t tokens_ = 0;
  uint64_t documents_ = 0;
  std::vector<TokenRun> runs_;  // by first token; in text, each is followed by one end-of-document token
  std::vector<uint64_t> document_starts_;
  uint64_t layout_hash_ = 0;  // of how the stream is made of the file's tokens
  uint64_t fingerprint_ = 0;
};

}  // namespace agoq::train
