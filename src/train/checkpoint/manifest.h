// manifest.json of a checkpoint: which piece of which logical tensor lies in which file, with checksums, and the
// metadata of the run.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/rectangle.h"
#include "base/safetensors.h"

namespace agoq::train {

struct ManifestFile {
  std::string name;  // beside the manifest
  uint64_t bytes = 0;
};

struct ManifestPiece {
  Rectangle at;  // in the tensor, see base/stored_tensor.h
  std::string file;
  uint64_t checksum = 0;  // XXH3 of its bytes
};

struct ManifestTensor {
  std::string name;  // without '@'
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  std::vector<ManifestPiece> pieces;  // of a manifest: they cover the tensor exactly once

  Rectangle whole() const { return whole_of(shape); }
  // How a piece stands in its file: the whole under the tensor's name and shape, others as "name@r0:r1,c0:c1" and a
  // matrix.
  TensorHeader header(const Rectangle& piece) const;
};

// What is wrong with the pieces of a tensor as a cover: a gap or an overlap, and where. Empty if nothing is.
std::string cover_problem(const ManifestTensor& tensor);

struct Manifest {
  int64_t step = 0;
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;  // in the order of their bytes, file by file, by their first piece
  std::string metadata = "{}";          // a JSON object
};

// Tensors that are each in one piece are written as format 1, which knew no others; it is read like the present one.
std::string manifest_text(const Manifest& manifest);

// Believes nothing before the manifest's own checksum is verified. `path` is for messages.
Manifest parse_manifest(std::string_view text, std::string_view path);

// What one rank has written of a checkpoint, or why it could not.
struct ManifestFragment {
  int rank = 0;
  std::string error;
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;
};
std::string fragment_text(const ManifestFragment& fragment);
ManifestFragment parse_fragment(std::string_view text);

// Joins the pieces of all ranks; an error if their tensors differ, or do not come out whole.
Manifest merge_fragments(int64_t step, std::string metadata, std::span<const ManifestFragment> fragments);

// The text of a manifest whose JSON object has these members ("a":1,"b":2}): they are preceded by their checksum.
std::string sealed_manifest(std::string_view members);

// Settings that differ between two JSON objects, nested keys joined by dots: "seed: saved 1, now 2".
std::vector<std::string> differences(std::string_view saved, std::string_view now);

}  // namespace agoq::train
