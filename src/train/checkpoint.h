// Checkpoints: folders of safetensors with a manifest, complete or absent.
//
//   checkpoints/step-00000100/shard-00000.safetensors ... manifest.json
//   checkpoints/latest                                    the name of the newest complete folder
//
// A checkpoint is written into step-N.tmp-PID, synced, renamed, and only then named in `latest`; so whenever the writer
// is killed, the newest complete checkpoint is found. Nothing is believed that its checksum does not confirm.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/safetensors.h"
#include "base/tensor.h"
#include "device/context.h"
#include "train/manifest.h"

namespace agoq::train {

struct NamedTensor {
  std::string name;
  Tensor tensor;  // in host memory; loading can also fill those of a device
};

struct SaveOptions {
  int64_t keep_last = 0;                     // older checkpoints beyond so many are removed; 0 keeps all
  uint64_t shard_bytes = uint64_t{2} << 30;  // a file holds more only when a single tensor does
};

// Returns the path of the new checkpoint. A step that exists already is replaced. On an error (a full disk) nothing
// incomplete is left behind, earlier checkpoints and `latest` are untouched, and the next save may succeed. One writer
// per folder (RunFolder's lock).
std::string save_checkpoint(const std::string& checkpoints, int64_t step, std::span<const NamedTensor> tensors,
                            const std::string& metadata_json, const SaveOptions& options = {});

Manifest read_checkpoint_manifest(const std::string& checkpoint);

// A complete checkpoint, open for reading. Opening checks the manifest, the sizes and headers of all files, but not yet
// the tensors' bytes.
class Checkpoint {
 public:
  explicit Checkpoint(std::string path);

  const std::string& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }
  const ManifestTensor* find(std::string_view name) const;  // null if absent

  // The tensor's bytes, compared with their checksum first.
  std::span<const uint8_t> verified_bytes(const ManifestTensor& tensor) const;
  void verify();  // every tensor, once and for all

 private:
  void check_file(const SafetensorsFile& file) const;

  std::string path_;
  Manifest manifest_;
  std::map<std::string, SafetensorsFile> files_;
  std::map<std::string_view, const ManifestTensor*> by_name_;
  bool verified_ = false;
};

// The path of the last complete checkpoint: the one that `latest` names or, with a warning about each that is passed
// over, the highest complete step. None if there is no checkpoint at all; an error that names each and why if none is
// complete. Sizes and headers are looked at, the tensors' bytes are not.
std::optional<std::string> find_latest_checkpoint(const std::string& checkpoints);
// The same, but intact to the last byte: every checksum is compared.
std::optional<Checkpoint> open_latest_checkpoint(const std::string& checkpoints);
// What `source` stands for, every checksum compared: a checkpoint folder for itself, which is never replaced by
// another; a run folder or a checkpoints folder for its last intact checkpoint. None for any other folder.
std::optional<Checkpoint> open_checkpoint(const std::string& source);
// The path of what `source` stands for, found by sizes and headers alone.
std::optional<std::string> find_checkpoint(const std::string& source);

struct LoadOptions {
  bool subset = false;              // tensors of the checkpoint without a destination are passed over (weights only)
  const Context* device = nullptr;  // where the destination is, if not in host memory
};

// Verifies everything before the first byte is copied: names, types, shapes and checksums. Errors name the file and
// tensor, and list what is missing or unexpected.
void load_checkpoint(const Checkpoint& checkpoint, std::span<const NamedTensor> destination,
                     const LoadOptions& options = {});
Manifest load_checkpoint(const std::string& checkpoint, std::span<const NamedTensor> destination,
                         const LoadOptions& options = {});

}  // namespace agoq::train
