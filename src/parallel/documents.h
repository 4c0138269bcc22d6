// Where documents begin, out of what a batch says of every token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace agoq::parallel {

// The first token of each document, then T. Empty if the tokens are not runs of documents, each within one sequence:
// then only document_start says what a token may see.
std::vector<int32_t> document_offsets(std::span<const int32_t> document_start, int64_t sequence_length);

}  // namespace agoq::parallel
