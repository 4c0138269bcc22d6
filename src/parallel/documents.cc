#include "parallel/documents.h"

namespace agoq::parallel {

std::vector<int32_t> document_offsets(std::span<const int32_t> document_start, int64_t sequence_length) {
  std::vector<int32_t> offsets;
  for (size_t i = 0; i < document_start.size(); ++i) {
    const auto t = static_cast<int32_t>(i);
    const bool begins = document_start[i] == t, continues = !offsets.empty() && document_start[i] == offsets.back();
    if (!begins && (!continues || t % sequence_length == 0)) return {};
    if (begins) offsets.push_back(t);
  }
  offsets.push_back(static_cast<int32_t>(document_start.size()));
  return offsets;
}

}  // namespace agoq::parallel
