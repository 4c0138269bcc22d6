#include "train/data/megatron_index.h"

#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/load.h"

namespace agoq::train {
namespace {

constexpr std::string_view kMagic{"MMIDIDX\0\0", 9};
constexpr uint64_t kIndexHeader = 9 + 8 + 1 + 8 + 8;  // magic, version, type, sequences, entries of the document list

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
    const uint64_t body_bytes = bytes_.size() - kIndexHeader;
    if (index_.sequences > 0 && index_.sequences <= body_bytes / 13 && document_entries_ <= body_bytes / 8 &&
        index_.sequences * 13 + document_entries_ * 8 == body_bytes)
      fail(
          "{} is a multimodal index: a mode of each of its {} sequences (text, image, ...) follows the documents; only "
          "text can be trained on. Write the text alone, with Megatron-LM's IndexedDatasetBuilder(multimodal=False)",
          path_, index_.sequences);
    check(
        index_.sequences <= body_bytes / 12 && document_entries_ <= body_bytes / 8 &&
            index_.sequences * 12 + document_entries_ * 8 == body_bytes,
        "{} sequences (byte 18) and {} document entries (byte 26) need 12 and 8 bytes each, the file has {} behind its "
        "header; it is truncated or damaged",
        index_.sequences, document_entries_, body_bytes);
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
    begin_documents(i);
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

  // Those whose first sequence this is. Documents without tokens begin where the next one does, and leave no border.
  void begin_documents(uint64_t sequence) {
    auto& starts = index_.document_starts;
    for (; next_document_ < index_.documents; ++next_document_) {
      if (load<uint64_t>(&bytes_[documents_ + next_document_ * 8]) != sequence) return;
      if (starts.empty() || starts.back() != index_.tokens) starts.push_back(index_.tokens);
    }
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
  uint64_t document_entries_ = 0, next_document_ = 0;
  uint64_t lengths_ = 0, pointers_ = 0, documents_ = 0;  // where the three arrays begin
  MegatronIndex index_;
};

}  // namespace

MegatronIndex parse_megatron_index(std::span<const uint8_t> index, std::string_view path, uint64_t bin_bytes) {
  return IndexParser(index, path, bin_bytes).parse();
}

}  // namespace agoq::train
