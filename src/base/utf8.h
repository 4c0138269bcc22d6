// Which bytes make a character of UTF-8.
#pragma once

#include <array>
#include <cstdint>

namespace agoq {

// First bytes that begin a character, how many more it has, and which may be the next one; all behind that are 80 to
// bf. Unicode 15, table 3-7: no overlong forms, no surrogates, at most U+10FFFF.
struct Utf8Beginning {
  uint8_t first, last;
  uint8_t more;
  uint8_t lowest, highest;
};
inline constexpr auto kUtf8Beginnings = std::to_array<Utf8Beginning>({{0x00, 0x7f, 0, 0x00, 0x00},
                                                                      {0xc2, 0xdf, 1, 0x80, 0xbf},
                                                                      {0xe0, 0xe0, 2, 0xa0, 0xbf},
                                                                      {0xe1, 0xec, 2, 0x80, 0xbf},
                                                                      {0xed, 0xed, 2, 0x80, 0x9f},
                                                                      {0xee, 0xef, 2, 0x80, 0xbf},
                                                                      {0xf0, 0xf0, 3, 0x90, 0xbf},
                                                                      {0xf1, 0xf3, 3, 0x80, 0xbf},
                                                                      {0xf4, 0xf4, 3, 0x80, 0x8f}});

// Null if no character begins with this byte.
constexpr const Utf8Beginning* utf8_beginning(uint8_t byte) {
  for (const Utf8Beginning& beginning : kUtf8Beginnings)
    if (byte >= beginning.first && byte <= beginning.last) return &beginning;
  return nullptr;
}

}  // namespace agoq
