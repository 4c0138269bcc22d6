#include "base/utf8_stream.h"

#include <utility>

#include "base/utf8.h"

namespace agoq {
namespace {

constexpr const char* kReplacement = "\xef\xbf\xbd";  // U+FFFD

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
  const Utf8Beginning* beginning = utf8_beginning(byte);
  if (!beginning) return kReplacement;
  missing_ = beginning->more;
  lowest_ = beginning->lowest;
  highest_ = beginning->highest;
  std::string character(1, static_cast<char>(byte));
  if (missing_ == 0) return character;
  character_ = std::move(character);
  return {};
}

std::string Utf8Stream::rest() {
  const bool incomplete = std::exchange(missing_, 0) > 0;
  character_.clear();
  return incomplete ? kReplacement : "";
}

}  // namespace agoq
