// Any bytes at all are either a valid safetensors header, whose promises then hold, or an agoq::Error.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/safetensors.h"
#include "input_limit.h"

namespace {

void demand(bool condition) {
  if (!condition) std::abort();
}

// "HEADER newline DATA" with the right length in front: seeds that people can read, and mutations that reach the JSON.
std::string with_length(std::string_view text) {
  const size_t header = std::min(text.find('\n'), text.size());
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(uint64_t{header} >> (8 * i));
  file += text.substr(0, header);
  file += text.substr(std::min(header + 1, text.size()));
  return file;
}

void check(std::span<const uint8_t> file) {
  try {
    const agoq::SafetensorsHeader header = agoq::parse_safetensors_header(file, "fuzz.safetensors");
    uint64_t end = 0;
    uint8_t sum = 0;
    for (const agoq::TensorEntry& entry : header.entries) {
      demand(entry.offset == end);
      end += entry.size;
      for (uint8_t byte : file.subspan(header.data_begin + entry.offset, entry.size)) sum ^= byte;
      if (entry.dtype) demand(static_cast<uint64_t>(entry.count) * agoq::size_of(*entry.dtype) == entry.size);
    }
    demand(header.data_begin + end == file.size());
    volatile uint8_t keep = sum;
    static_cast<void>(keep);
  } catch (const agoq::Error& error) {
    demand(std::string_view(error.what()).find("fuzz.safetensors") != std::string_view::npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const InputLimit limit;
  check({data, size});
  const std::string file = with_length({reinterpret_cast<const char*>(data), size});
  check({reinterpret_cast<const uint8_t*>(file.data()), file.size()});
  return 0;
}
