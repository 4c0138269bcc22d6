// Writers of token files for tests, from the format's description alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/error_of.h"
#include "base/scratch_folder.h"

namespace agoq::train {

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

template <class T>
std::string raw_tokens(const std::vector<int64_t>& tokens) {
  std::string bytes;
  for (const int64_t token : tokens) put(bytes, static_cast<T>(token));
  return bytes;
}

// An index of sequences that lie one behind the other, each a document of its own.
inline std::string megatron_index(uint8_t code, int64_t token_bytes, const std::vector<int32_t>& lengths) {
  std::string out("MMIDIDX\0\0", 9);
  put<uint64_t>(out, 1);
  put<uint8_t>(out, code);
  put<uint64_t>(out, lengths.size());
  put<uint64_t>(out, lengths.size() + 1);
  for (const int32_t length : lengths) put(out, length);
  int64_t pointer = 0;
  for (const int32_t length : lengths) {
    put(out, pointer);
    pointer += length * token_bytes;
  }
  for (size_t i = 0; i <= lengths.size(); ++i) put<int64_t>(out, static_cast<int64_t>(i));
  return out;
}

// PREFIX.bin and PREFIX.idx of uint16 tokens.
inline void write_megatron(const std::string& prefix, const std::vector<std::vector<int64_t>>& documents) {
  std::string bin;
  std::vector<int32_t> lengths;
  for (const auto& document : documents) {
    bin += raw_tokens<uint16_t>(document);
    lengths.push_back(static_cast<int32_t>(document.size()));
  }
  write_plainly(prefix + ".bin", bin);
  write_plainly(prefix + ".idx", megatron_index(8, 2, lengths));
}

}  // namespace agoq::train
