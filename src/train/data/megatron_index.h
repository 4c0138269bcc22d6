// PREFIX.idx of Megatron-LM: where in PREFIX.bin the sequences of a stream lie, and which of them are a document.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace agoq::train {

// Stream tokens [first, first + length) are elements [element, element + length) of the data file.
struct TokenRun {
  uint64_t first = 0;
  uint64_t element = 0;
  uint64_t length = 0;
};

// What a Megatron-LM index says about its .bin. Sequences that lie one behind the other are joined to one run.
struct MegatronIndex {
  uint64_t element_size = 0;  // 1, 2, 4 or 8 bytes
  uint64_t sequences = 0;
  uint64_t documents = 0;
  uint64_t tokens = 0;
  std::vector<TokenRun> runs;
  std::vector<uint64_t> document_starts;  // first token of each document that has any, in the stream; ascending
};

// Checks every entry against the index's own size and the size of the .bin. `path` is for messages.
MegatronIndex parse_megatron_index(std::span<const uint8_t> index, std::string_view path, uint64_t bin_bytes);

}  // namespace agoq::train
