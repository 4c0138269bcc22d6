#include "base/utf8_stream.h"

#include <array>
#include <utility>

namespace agoq {
namespace {

constexpr const char* kReplacement = "\xef\xbf\xbd";  // U+FFFD

// Which first bytes begin a character of how many bytes, and which second bytes may follow: the Unicode standard's
// table of well-formed sequences.
struct Beginning {
  uint8_t first, last;
  int more;
  uint8_t lowest, highest;
};
constexpr auto kBeginnings = std::to_array<Beginning>({{0x00, 0x7f, 0, 0x00, 0x00},
                                                       {0xc2, 0xdf, 1, 0x80, 0xbf},
                                                       {0xe0, 0xe0, 2, 0xa0, 0xbf},
                                                       {0xe1, 0xec, 2, 0x80, 0xbf},
                                                       {0xed, 0xed, 2, 0x80, 0x9f},
                                                       {0xee, 0xef, 2, 0x80, 0xbf},
                                                       {0xf0, 0xf0, 3, 0x90, 0xbf},
                                                       {0xf1, 0xf3, 3, 0x80, 0xbf},
                                                       {0xf4, 0xf4, 3, 0x80, 0x8f}});

}  // namespace

std::string Utf8Stream::add(uint8_t byte) {
  if (missing_ == 0) return begin(byte);
  if (byte < lowest_ || byte > highest_) {
    std::string text = rest();
    return text += begin(byte);
  }
  character_ += static_cast<char>(byte);
  lowest_ = 0x80;
  highest_ = 0xbf;
  return --missing_ == 0 ? std::exchange(character_, {}) : "";
}

std::string Utf8Stream::begin(uint8_t byte) {
  for (const Beginning& b : kBeginnings) {
    if (byte < b.first || byte > b.last) continue;
    missing_ = b.more;
    lowest_ = b.lowest;
    highest_ = b.highest;
    std::string character(1, static_cast<char>(byte));
    if (missing_ == 0) return character;
    character_ = std::move(character);
    return {};
  }
  return kReplacement;
}

std::string Utf8Stream::rest() {
  const bool incomplete = std::exchange(missing_, 0) > 0;
  character_.clear();
  return incomplete ? kReplacement : "";
}

}  // namespace agoq
