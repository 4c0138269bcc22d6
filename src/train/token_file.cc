#include "train/token_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>

#include "base/checksum.h"
#include "base/error.h"

namespace agoq::train {
namespace {

constexpr std::string_view kMagic{"MMIDIDX\0\0", 9};
constexpr uint64_t kIndexHeader = 9 + 8 + 1 + 8 + 8;  // magic, version, type, sequences, entries of the document list

template <class T>
T load(const uint8_t* from) {  // little-endian, at any alignment
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

class IndexParser {
 public:
  IndexParser(std::span<const uint8_t> bytes, std::string_view path, uint64_t bin_bytes)
      : bytes_(bytes), path_(path), bin_bytes_(bin_bytes) {}

  MegatronIndex parse() {
    read_header();
    read_documents();
    for (uint64_t i = 0; i < index_.sequences; ++i) add_sequence(i);
    return std::move(index_);
  }

 private:
  template <class... Args>
  void check(bool condition, fmt::format_string<Args...> text, Args&&... args) const {
    if (!condition) [[unlikely]]
      fail("{} is not a valid Megatron-LM index: {}", path_, fmt::format(text, std::forward<Args>(args)...));
  }

  void read_header() {
    check(bytes_.size() >= kIndexHeader, "it has {} bytes, fewer than the {} of its header", bytes_.size(),
          kIndexHeader);
    check(std::memcmp(bytes_.data(), kMagic.data(), kMagic.size()) == 0, "byte 0: it does not begin with \"MMIDIDX\"");
    const auto version = load<uint64_t>(&bytes_[9]);
    check(version == 1, "byte 9: version {}, only 1 is known", version);
    read_type(bytes_[17]);
    index_.sequences = load<uint64_t>(&bytes_[18]);
    document_entries_ = load<uint64_t>(&bytes_[26]);
    const uint64_t room = bytes_.size() - kIndexHeader;
    check(
        index_.sequences <= room / 12 && document_entries_ <= room / 8 &&
            index_.sequences * 12 + document_entries_ * 8 == room,
        "{} sequences (byte 18) and {} document entries (byte 26) need 12 and 8 bytes each, the file has {} behind its "
        "header; it is truncated or damaged",
        index_.sequences, document_entries_, room);
    lengths_ = kIndexHeader;
    pointers_ = lengths_ + index_.sequences * 4;
    documents_ = pointers_ + index_.sequences * 8;
  }

  void read_type(uint8_t code) {
    switch (code) {
      case 1:
        index_.element_size = 1;
        break;
      case 4:
        index_.element_size = 4;
        break;
      case 5:
        index_.element_size = 8;
        break;
      case 8:
        index_.element_size = 2;
        break;
      default:
        check(false, "byte 17: type code {}; 1 (uint8), 4 (int32), 5 (int64) and 8 (uint16) hold tokens", code);
    }
  }

  // Entry i is the first sequence of document i; the last entry is the number of sequences.
  void read_documents() {
    int64_t before = 0;
    for (uint64_t i = 0; i < document_entries_; ++i) {
      const uint64_t at = documents_ + i * 8;
      const auto first = load<int64_t>(&bytes_[at]);
      const bool last = i + 1 == document_entries_;
      check(first >= before && static_cast<uint64_t>(first) <= index_.sequences && (i > 0 || first == 0),
            "byte {}: document {} begins at sequence {}, after one that begins at {}; there are {} sequences", at, i,
            first, before, index_.sequences);
      check(!last || static_cast<uint64_t>(first) == index_.sequences,
            "byte {}: the document list ends at sequence {} of {}", at, first, index_.sequences);
      before = first;
    }
    index_.documents = document_entries_ == 0 ? 0 : document_entries_ - 1;
  }

  void add_sequence(uint64_t i) {
    const uint64_t at = lengths_ + i * 4;
    const auto length = load<int32_t>(&bytes_[at]);
    check(length >= 0, "byte {}: sequence {} has the length {}", at, i, length);
    const uint64_t pointer_at = pointers_ + i * 8;
    const auto pointer = load<int64_t>(&bytes_[pointer_at]);
    const uint64_t size = index_.element_size;
    check(pointer >= 0 && static_cast<uint64_t>(pointer) <= bin_bytes_ &&
              static_cast<uint64_t>(length) <= (bin_bytes_ - static_cast<uint64_t>(pointer)) / size,
          "byte {}: sequence {} (stream token {}) of {} tokens begins at byte {} of the .bin, which has only {} bytes",
          pointer_at, i, index_.tokens, length, pointer, bin_bytes_);
    check(static_cast<uint64_t>(pointer) % size == 0,
          "byte {}: sequence {} begins at byte {}, no multiple of its {}-byte tokens", pointer_at, i, pointer, size);
    if (length > 0) append(static_cast<uint64_t>(pointer) / size, static_cast<uint64_t>(length));
  }

  void append(uint64_t element, uint64_t length) {
    auto& runs = index_.runs;
    if (!runs.empty() && runs.back().element + runs.back().length == element)
      runs.back().length += length;
    else
      runs.push_back({index_.tokens, element, length});
    // Sequences may overlap in the .bin, so the sum is not bounded by its size; it is by 2^31 times their number.
    index_.tokens += length;
  }

  std::span<const uint8_t> bytes_;
  std::string_view path_;
  uint64_t bin_bytes_;
  uint64_t document_entries_ = 0;
  uint64_t lengths_ = 0, pointers_ = 0, documents_ = 0;  // where the three arrays begin
  MegatronIndex index_;
};

// The length of the well-formed UTF-8 character at the front of `text` (Unicode 15, table 3-7), or 0.
size_t utf8_character(std::span<const uint8_t> text) {
  const uint8_t lead = text[0];
  const auto tail = [&](size_t i, uint8_t low, uint8_t high) {
    return i < text.size() && text[i] >= low && text[i] <= high;
  };
  const auto any = [&](size_t i) { return tail(i, 0x80, 0xBF); };
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return any(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const uint8_t low = lead == 0xE0 ? 0xA0 : 0x80;   // no overlong forms
    const uint8_t high = lead == 0xED ? 0x9F : 0xBF;  // no surrogates
    return tail(1, low, high) && any(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const uint8_t low = lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xF4 ? 0x8F : 0xBF;  // at most U+10FFFF
    return tail(1, low, high) && any(2) && any(3) ? 4 : 0;
  }
  return 0;
}

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
  if (named) fail("cannot find the data {}", path);
  fail("cannot find the data {}: neither such a file nor {}.bin with {}.idx", path, path, path);
}

MegatronIndex parse_megatron_index(std::span<const uint8_t> index, std::string_view path, uint64_t bin_bytes) {
  return IndexParser(index, path, bin_bytes).parse();
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
}

void TokenFile::open_megatron(const std::string& prefix) {
  const MappedFile file(prefix + ".idx");
  MegatronIndex index = parse_megatron_index(file.bytes(), file.path(), data_.size());
  element_size_ = index.element_size;
  tokens_ = index.tokens;
  documents_ = index.documents;
  runs_ = std::move(index.runs);
  require(data_.size() % element_size_ == 0,
          "{} has {} bytes, no multiple of its {}-byte tokens; it ends inside token {}", data_.path(), data_.size(),
          element_size_, data_.size() / element_size_);
  if (!is_file(prefix + ".mask")) return;
  mask_.emplace(prefix + ".mask");
  require(mask_->size() == data_.size() / element_size_,
          "{} has {} bytes and {} has {} tokens; a mask holds one byte for each token", mask_->path(), mask_->size(),
          data_.path(), data_.size() / element_size_);
}

void TokenFile::open_flat(DType dtype) {
  require(dtype == DType::U16 || dtype == DType::I32, "flat token files hold uint16 or int32, not {}", name_of(dtype));
  element_size_ = size_of(dtype);
  tokens_ = data_.size() / element_size_;
  require(data_.size() % element_size_ == 0,
          "{} has {} bytes, no multiple of its {}-byte tokens; it ends inside token {}, or --data-dtype is wrong",
          path(), data_.size(), element_size_, tokens_);
  runs_ = {{0, 0, tokens_}};
}

void TokenFile::open_text(const std::string& separator) {
  require(
      vocab_size_ == 0 || vocab_size_ >= kByteTokenizerVocab,
      "{} is text, and the built-in byte tokenizer needs a vocabulary of at least {} tokens, not {}; tokenize the text "
      "with the model's own tokenizer (agoq data)",
      path(), kByteTokenizerVocab, vocab_size_);
  const auto text = data_.bytes();
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
}

void TokenFile::add_document(uint64_t begin, uint64_t end) {
  if (begin == end) return;
  runs_.push_back({tokens_, begin, end - begin});
  tokens_ += end - begin + 1;  // and the end-of-document token
  ++documents_;
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
  const uint8_t* from = data_.bytes().data() + element * sizeof(T);
  const int64_t limit = vocab_size_ > 0 ? vocab_size_ : int64_t{INT32_MAX} + 1;
  for (size_t i = 0; i < out.size(); ++i) {
    const auto id = static_cast<int64_t>(load<T>(from + i * sizeof(T)));
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
    const auto mask = mask_->bytes().subspan(element, length);
    for (uint64_t i = 0; i < length; ++i) {
      require(mask[i] <= 1, "{}: byte {} is {}, a mask holds only 0 and 1", mask_->path(), element + i, mask[i]);
      out[at + i] = mask[i];
    }
  });
}

uint64_t TokenFile::fingerprint() const {
  constexpr uint64_t kPieces = 64, kPieceBytes = 16384;
  Xxh3 hash;
  const std::array<uint64_t, 3> sizes = {tokens_, data_.size(), mask_ ? 1u : 0u};
  hash.add({reinterpret_cast<const uint8_t*>(sizes.data()), sizeof(sizes)});
  const auto add_samples = [&](std::span<const uint8_t> bytes) {
    if (bytes.size() <= kPieces * kPieceBytes) return hash.add(bytes);
    for (uint64_t i = 0; i < kPieces; ++i)  // evenly spaced, from the first byte to the last
      hash.add(bytes.subspan((bytes.size() - kPieceBytes) * i / (kPieces - 1), kPieceBytes));
  };
  add_samples(data_.bytes());
  if (mask_) add_samples(mask_->bytes());
  return hash.value();
}

}  // namespace agoq::train
