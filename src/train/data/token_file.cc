#include "train/data/token_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>

#include "base/checksum.h"
#include "base/error.h"
#include "base/load.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "train/data/file_scan.h"

namespace agoq::train {
namespace {

constexpr uint64_t kBlock = 1 << 16;  // tokens that are looked at together

void require_utf8(std::span<const uint8_t> text, const std::string& path) {
  constexpr uint64_t kHighBits = 0x8080808080808080u;
  size_t at = 0;
  while (at < text.size()) {
    if (text.size() - at >= 8 && (load<uint64_t>(&text[at]) & kHighBits) == 0) {
      at += 8;  // eight ASCII characters
      continue;
    }
    const size_t length = utf8_character(text.subspan(at));
    require(length > 0,
            "{} is not UTF-8 text: byte {} is {:#04x}; convert it (iconv -t UTF-8), or give tokens as .bin (with .idx)",
            path, at, text[at]);
    at += length;
  }
}

bool is_file(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

// "a directory", or whatever else a name that is no file stands for; empty if nothing is there.
std::string what_is(const std::string& path) {
  std::error_code ignored;
  const auto status = std::filesystem::status(path, ignored);
  switch (status.type()) {
    case std::filesystem::file_type::not_found:
    case std::filesystem::file_type::none:
    case std::filesystem::file_type::regular:
      return "";
    case std::filesystem::file_type::directory:
      return "a directory";
    case std::filesystem::file_type::fifo:
      return "a pipe, which cannot be read twice";
    default:
      return "no regular file";
  }
}

std::string without_extension(const std::string& path) {
  return path.ends_with(".bin") || path.ends_with(".idx") ? path.substr(0, path.size() - 4) : path;
}

}  // namespace

std::string_view name_of(TokenFormat format) {
  constexpr std::array<std::string_view, 3> kNames = {"Megatron-LM", "flat", "text"};
  return kNames[static_cast<size_t>(format)];
}

TokenFilePlace find_token_file(const std::string& path) {
  const std::string prefix = without_extension(path);
  const bool bin = is_file(prefix + ".bin");
  const bool idx = is_file(prefix + ".idx");
  const bool named = path != prefix;  // by its extension
  if (!named && is_file(path)) return {TokenFormat::Text, path};
  if (bin && idx) return {TokenFormat::Megatron, prefix + ".bin"};
  if (bin && path.ends_with(".bin")) return {TokenFormat::Flat, path};
  require(!bin, "{}.bin has no index {}.idx; copy it too, or name the .bin itself if it holds nothing but tokens",
          prefix, prefix);
  require(!idx, "the index {}.idx has no {}.bin beside it", prefix, prefix);
  if (const std::string other = what_is(path); !other.empty()) fail("{} is {}: give a regular file", path, other);
  if (named) fail("cannot find the data {}", path);
  fail("cannot find the data {}: neither such a file nor {}.bin with {}.idx", path, path, path);
}

TokenFile::TokenFile(const std::string& path, const TokenFileOptions& options)
    : format_(find_token_file(path).format), vocab_size_(options.vocab_size), data_(find_token_file(path).data) {
  require(vocab_size_ >= 0 && vocab_size_ <= INT32_MAX, "a vocabulary of {} tokens is impossible", vocab_size_);
  switch (format_) {
    case TokenFormat::Megatron:
      open_megatron(without_extension(path));
      break;
    case TokenFormat::Flat:
      open_flat(options.data_dtype);
      break;
    case TokenFormat::Text:
      open_text(options.document_separator);
      break;
  }
  check_contents();
}

void TokenFile::open_megatron(const std::string& prefix) {
  const MappedFile file(prefix + ".idx");
  MegatronIndex index = parse_megatron_index(file.bytes(), file.path(), data_.size());
  element_size_ = index.element_size;
  tokens_ = index.tokens;
  documents_ = index.documents;
  runs_ = std::move(index.runs);
  document_starts_ = std::move(index.document_starts);
  layout_hash_ = xxh3(file.bytes());
  require(data_.size() % element_size_ == 0,
          "{} has {} bytes, no multiple of its {}-byte tokens; it ends inside token {}", data_.path(), data_.size(),
          element_size_, data_.size() / element_size_);
  open_mask(prefix);
}

void TokenFile::open_flat(DType dtype) {
  require(dtype == DType::U16 || dtype == DType::I32, "flat token files hold uint16 or int32, not {}", name_of(dtype));
  element_size_ = size_of(dtype);
  tokens_ = data_.size() / element_size_;
  require(data_.size() % element_size_ == 0,
          "{} has {} bytes, no multiple of its {}-byte tokens; it ends inside token {}, or --data-dtype is wrong",
          path(), data_.size(), element_size_, tokens_);
  runs_ = {{0, 0, tokens_}};
  open_mask(without_extension(path()));
}

void TokenFile::open_mask(const std::string& prefix) {
  const std::string path = prefix + ".mask";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return;
  mask_.emplace(path);
  require(mask_->size() == data_.size() / element_size_,
          "{} has {} bytes and {} has {} tokens; a mask holds one byte for each token", path, mask_->size(),
          data_.path(), data_.size() / element_size_);
}

void TokenFile::open_text(const std::string& separator) {
  require(
      vocab_size_ == 0 || vocab_size_ >= kByteTokenizerVocab,
      "{} is text, and the built-in byte tokenizer needs a vocabulary of at least {} tokens, not {}; tokenize the text "
      "with the model's own tokenizer (agoq data)",
      path(), kByteTokenizerVocab, vocab_size_);
  const MappedFile file(path());
  const auto text = file.bytes();
  require_utf8(text, path());
  uint64_t begin = 0;
  for (uint64_t line = 0; line < text.size() && !separator.empty();) {
    const auto* end = static_cast<const uint8_t*>(std::memchr(&text[line], '\n', text.size() - line));
    const uint64_t next = end ? static_cast<uint64_t>(end - text.data()) + 1 : text.size();
    std::string_view content(reinterpret_cast<const char*>(&text[line]), next - line);
    while (content.ends_with('\n') || content.ends_with('\r')) content.remove_suffix(1);
    if (content == separator) {
      add_document(begin, line);
      begin = next;
    }
    line = next;
  }
  add_document(begin, text.size());
  layout_hash_ = xxh3({reinterpret_cast<const uint8_t*>(runs_.data()), runs_.size() * sizeof(TokenRun)});
}

void TokenFile::add_document(uint64_t begin, uint64_t end) {
  if (begin == end) return;
  runs_.push_back({tokens_, begin, end - begin});
  tokens_ += end - begin + 1;  // and the end-of-document token
  ++documents_;
}

// Reading the stream names what is wrong and where; a scan only tells that something may be. It covers tokens that the
// index leaves out, too, which may be anything.
void TokenFile::check_contents() {
  const DType type = element_size_ == 8   ? DType::I64
                     : element_size_ == 4 ? DType::I32
                     : element_size_ == 2 ? DType::U16
                                          : DType::U8;
  const FileScan tokens = remembered_scan(data_, type);
  if (tokens.smallest < 0 || tokens.largest >= id_limit()) check_ids();
  const FileScan mask = mask_ ? remembered_scan(*mask_, DType::U8) : FileScan{};
  if (mask.largest > 1) check_mask();
  const std::array<uint64_t, 5> parts = {tokens_, tokens.hash, layout_hash_, mask_ ? 1u : 0u, mask.hash};
  fingerprint_ = xxh3({reinterpret_cast<const uint8_t*>(parts.data()), sizeof(parts)});
}

void TokenFile::check_ids() const {
  std::vector<int32_t> ids(kBlock);
  for (uint64_t first = 0; first < tokens_; first += kBlock)
    read(first, std::span(ids).first(std::min(kBlock, tokens_ - first)));
}

void TokenFile::check_mask() const {
  std::vector<float> weights(kBlock);
  for (uint64_t first = 0; first < tokens_; first += kBlock)
    read_mask(first, std::span(weights).first(std::min(kBlock, tokens_ - first)));
}

int64_t TokenFile::id_limit() const {
  return vocab_size_ > 0 ? vocab_size_ : int64_t{INT32_MAX} + 1;
}

template <class Piece>
void TokenFile::for_each_piece(uint64_t first, uint64_t count, Piece piece) const {
  require(first <= tokens_ && count <= tokens_ - first, "{}: tokens {} to {} were asked for, it has {}", path(), first,
          first + count, tokens_);
  auto run =
      std::upper_bound(runs_.begin(), runs_.end(), first, [](uint64_t t, const TokenRun& r) { return t < r.first; });
  if (run != runs_.begin()) --run;
  for (; run != runs_.end() && run->first < first + count; ++run) {
    const uint64_t begin = std::max(first, run->first);
    const uint64_t end = std::min(first + count, run->first + run->length);
    if (begin < end) piece(begin - first, run->element + (begin - run->first), end - begin);
  }
}

void TokenFile::read(uint64_t first, std::span<int32_t> out) const {
  if (format_ == TokenFormat::Text) std::fill(out.begin(), out.end(), kByteTokenizerEod);  // what lies between the runs
  for_each_piece(first, out.size(), [&](uint64_t at, uint64_t element, uint64_t length) {
    read_elements(first + at, element, out.subspan(at, length));
  });
}

void TokenFile::read_elements(uint64_t first, uint64_t element, std::span<int32_t> out) const {
  switch (element_size_) {
    case 1:
      return widen<uint8_t>(first, element, out);
    case 2:
      return widen<uint16_t>(first, element, out);
    case 4:
      return widen<int32_t>(first, element, out);
    default:
      return widen<int64_t>(first, element, out);
  }
}

template <class T>
void TokenFile::widen(uint64_t first, uint64_t element, std::span<int32_t> out) const {
  std::vector<uint8_t> bytes(out.size() * sizeof(T));
  data_.read(element * sizeof(T), bytes);
  const int64_t limit = id_limit();
  for (size_t i = 0; i < out.size(); ++i) {
    const auto id = static_cast<int64_t>(load<T>(&bytes[i * sizeof(T)]));
    if (id < 0 || id >= limit) [[unlikely]]
      fail(
          "{}: token {} (byte {}) has the id {}, outside the vocabulary of {}; was the file made with another "
          "tokenizer{}?",
          path(), first + i, (element + i) * sizeof(T), id, limit,
          format_ == TokenFormat::Flat ? ", or is --data-dtype wrong" : "");
    out[i] = static_cast<int32_t>(id);
  }
}

void TokenFile::read_mask(uint64_t first, std::span<float> out) const {
  std::fill(out.begin(), out.end(), 1.0f);
  if (!mask_) return;
  for_each_piece(first, out.size(), [&](uint64_t at, uint64_t element, uint64_t length) {
    std::vector<uint8_t> mask(length);
    mask_->read(element, mask);
    for (uint64_t i = 0; i < length; ++i) {
      require(mask[i] <= 1, "{}: byte {} is {}, a mask holds only 0 and 1", mask_->path(), element + i, mask[i]);
      out[at + i] = mask[i];
    }
  });
}

std::optional<uint64_t> TokenFile::next_target(uint64_t first, uint64_t end) const {
  if (!mask_) return first < end ? std::optional(first) : std::nullopt;
  std::vector<uint8_t> mask(kBlock);
  for (; first < end; first += kBlock) {
    const uint64_t count = std::min(kBlock, end - first);
    for_each_piece(first, count, [&](uint64_t at, uint64_t element, uint64_t length) {
      mask_->read(element, std::span(mask).subspan(at, length));
    });
    const auto* found = static_cast<const uint8_t*>(std::memchr(mask.data(), 1, count));
    if (found) return first + static_cast<uint64_t>(found - mask.data());
  }
  return std::nullopt;
}

std::span<const uint64_t> TokenFile::document_starts(uint64_t first, uint64_t end) const {
  const auto from = std::lower_bound(document_starts_.begin(), document_starts_.end(), first);
  return {from, std::lower_bound(from, document_starts_.end(), end)};
}

uint64_t TokenFile::sampled_fingerprint() const {
  constexpr uint64_t kPieces = 64, kPieceBytes = 16384;
  const bool with_mask = mask_ && format_ == TokenFormat::Megatron;  // one beside a flat file was not read
  Xxh3 hash;
  const std::array<uint64_t, 3> sizes = {tokens_, data_.size(), with_mask ? 1u : 0u};
  hash.add({reinterpret_cast<const uint8_t*>(sizes.data()), sizeof(sizes)});
  const auto add_samples = [&](const PositionedFile& file) {
    const bool whole = file.size() <= kPieces * kPieceBytes;
    std::vector<uint8_t> bytes(whole ? file.size() : kPieceBytes);
    for (uint64_t i = 0; i < (whole ? 1 : kPieces); ++i) {  // evenly spaced, from the first byte to the last
      file.read(whole ? 0 : (file.size() - kPieceBytes) * i / (kPieces - 1), bytes);
      hash.add(bytes);
    }
  };
  add_samples(data_);
  if (with_mask) add_samples(*mask_);
  return hash.value();
}

}  // namespace agoq::train
