// manifest.json of a checkpoint: which tensors lie in which file, with checksums, and the metadata of the run.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace agoq::train {

struct ManifestFile {
  std::string name;  // beside the manifest
  uint64_t bytes = 0;
};

struct ManifestTensor {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  std::string file;
  uint64_t checksum = 0;  // XXH3 of its bytes
};

struct Manifest {
  int64_t step = 0;
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;  // in the order of their bytes, file by file
  std::string metadata = "{}";          // a JSON object
};

std::string manifest_text(const Manifest& manifest);

// Believes nothing before the manifest's own checksum is verified. `path` is for messages.
Manifest parse_manifest(std::string_view text, std::string_view path);

// The text of a manifest whose JSON object has these members ("a":1,"b":2}): they are preceded by their checksum.
std::string sealed_manifest(std::string_view members);

// Settings that differ between two JSON objects, nested keys joined by dots: "seed: saved 1, now 2".
std::vector<std::string> differences(std::string_view saved, std::string_view now);

}  // namespace agoq::train
