// Numbers out of bytes of a file.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace agoq {

// The little-endian number that begins at `from`, at any alignment.
template <class T>
T load(const uint8_t* from) {
  static_assert(std::endian::native == std::endian::little);
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

}  // namespace agoq
