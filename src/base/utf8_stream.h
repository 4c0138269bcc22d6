// Text that arrives byte by byte: only whole characters leave.
#pragma once

#include <cstdint>
#include <string>

namespace agoq {

// All that leaves, joined, is what the bytes decode to at once: bytes that are no character become U+FFFD, one for each
// longest beginning of a character, as Unicode recommends and Python does.
class Utf8Stream {
 public:
  std::string add(uint8_t byte);  // empty while a character is incomplete
  std::string rest();             // once there are no more bytes

 private:
  std::string begin(uint8_t byte);

  std::string character_;             // what there is of it
  int missing_ = 0;                   // bytes
  uint8_t lowest_ = 0, highest_ = 0;  // that the next byte may be
};

}  // namespace agoq
