// Any bytes at all are either a checkpoint's manifest, which then survives being written and read again, or an
// agoq::Error.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "input_limit.h"
#include "train/checkpoint/manifest.h"

namespace {

using namespace agoq::train;

void demand(bool condition) {
  if (!condition) std::abort();
}

void check_pieces(const Manifest& manifest, const ManifestTensor& tensor) {
  const agoq::Rectangle whole = tensor.whole();
  int64_t numbers = 0;
  for (const ManifestPiece& piece : tensor.pieces) {
    demand(std::any_of(manifest.files.begin(), manifest.files.end(), [&](auto& f) { return f.name == piece.file; }));
    demand(whole.contains(piece.at));
    numbers += piece.at.count();
  }
  demand(numbers == whole.count());
}

void check_fragment(std::string_view text) {
  try {
    const ManifestFragment fragment = parse_fragment(text);
    const std::string written = fragment_text(fragment);
    demand(fragment_text(parse_fragment(written)) == written);
  } catch (const agoq::Error&) {
  }
}

void check(std::string_view text) {
  try {
    const Manifest manifest = parse_manifest(text, "fuzz/manifest.json");
    for (const ManifestTensor& tensor : manifest.tensors) check_pieces(manifest, tensor);
    for (const ManifestFile& file : manifest.files)
      demand(file.name.find('/') == std::string::npos && file.name != "..");
    const std::string written = manifest_text(manifest);
    demand(manifest_text(parse_manifest(written, "again")) == written);
    demand(differences(manifest.metadata, manifest.metadata).empty());
  } catch (const agoq::Error& error) {
    demand(std::string_view(error.what()).find("fuzz/manifest.json") != std::string_view::npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const InputLimit limit;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check(text);
  check_fragment(text);
  check(agoq::train::sealed_manifest(text));  // with the right checksum, so that mutations reach the JSON
  return 0;
}
