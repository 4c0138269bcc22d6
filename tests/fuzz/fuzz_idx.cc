// Any bytes at all are either a Megatron-LM index, whose runs then lie inside the .bin, or an agoq::Error.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "input_limit.h"
#include "train/data/token_file.h"

namespace {

void demand(bool condition) {
  if (!condition) std::abort();
}

void check(std::span<const uint8_t> index, uint64_t bin_bytes) {
  try {
    const agoq::train::MegatronIndex parsed = agoq::train::parse_megatron_index(index, "fuzz.idx", bin_bytes);
    uint64_t tokens = 0;
    for (const agoq::train::TokenRun& run : parsed.runs) {
      demand(run.first == tokens && run.length > 0);
      demand((run.element + run.length) * parsed.element_size <= bin_bytes);
      tokens += run.length;
    }
    demand(tokens == parsed.tokens);
    demand(parsed.runs.size() <= parsed.sequences);
  } catch (const agoq::Error& error) {
    demand(std::string_view(error.what()).find("fuzz.idx") != std::string_view::npos);
  }
}

// A header that fits, so that mutations reach the arrays: the input is type code, sequences, .bin size, then the
// arrays.
void check_arrays(std::span<const uint8_t> input) {
  if (input.size() < 3) return;
  const std::span<const uint8_t> arrays = input.subspan(3);
  const uint64_t sequences = std::min<uint64_t>(input[1], arrays.size() / 12);
  const uint64_t documents = (arrays.size() - sequences * 12) / 8;
  std::string index("MMIDIDX\0\0", 9);
  const auto put = [&](uint64_t value, size_t bytes) { index.append(reinterpret_cast<const char*>(&value), bytes); };
  put(1, 8);
  put(input[0], 1);
  put(sequences, 8);
  put(documents, 8);
  index.append(reinterpret_cast<const char*>(arrays.data()), sequences * 12 + documents * 8);
  check({reinterpret_cast<const uint8_t*>(index.data()), index.size()}, input[2]);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const InputLimit limit;
  check({data, size}, size);
  check_arrays({data, size});
  return 0;
}
