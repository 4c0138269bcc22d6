// Reading checkpoints, whatever the mesh of those who wrote them (checkpoint_save.h). Nothing is believed that its
// checksum does not confirm.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/safetensors.h"
#include "base/stored_tensor.h"
#include "device/context.h"
#include "train/checkpoint/manifest.h"
#include "train/readers.h"

namespace agoq::train {

Manifest read_checkpoint_manifest(const std::string& checkpoint);

// A complete checkpoint, open for reading. Opening checks the manifest, the sizes and headers of all files, but not yet
// the tensors' bytes.
class Checkpoint {
 public:
  explicit Checkpoint(std::string path);

  const std::string& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }
  const ManifestTensor* find(std::string_view name) const;  // null if absent

  // Compares the checksums of the pieces that hold any of a rectangle, each once in the life of this object.
  void verify(const ManifestTensor& tensor, const Rectangle& at) const;
  void verify() const;  // every piece
  // One rank's share of that, cut by bytes: the shares of all ranks are every piece.
  void verify_share(int rank, int ranks) const;
  // The numbers of a rectangle, row by row without holes, from the pieces that hold them, which are verified first.
  void read(const ManifestTensor& tensor, const Rectangle& at, uint8_t* out) const;

 private:
  void open_file(const ManifestFile& listed);
  void check_entries() const;
  std::span<const uint8_t> bytes_of(const ManifestTensor& tensor, const ManifestPiece& piece) const;
  void verify_piece(const ManifestTensor& tensor, const ManifestPiece& piece) const;

  std::string path_;
  Manifest manifest_;
  std::map<std::string, SafetensorsFile, std::less<>> files_;
  std::map<std::string_view, const ManifestTensor*> by_name_;
  mutable std::set<const ManifestPiece*> verified_;
};

// The path of the last complete checkpoint: the one that `latest` names or, with a warning about each that is passed
// over, the highest complete step. None if there is no checkpoint at all; an error that names each and why if none is
// complete. Sizes and headers are looked at, the tensors' bytes are not.
std::optional<std::string> find_latest_checkpoint(const std::string& checkpoints);
// The same, but intact to the last byte: every checksum is compared.
std::optional<Checkpoint> open_latest_checkpoint(const std::string& checkpoints, const Readers& readers = {});
// What `source` stands for, every checksum compared: a checkpoint folder for itself, which is never replaced by
// another; a run folder or a checkpoints folder for its last intact checkpoint. None for any other folder.
std::optional<Checkpoint> open_checkpoint(const std::string& source, const Readers& readers = {});
// The path of what `source` stands for, found by sizes and headers alone.
std::optional<std::string> find_checkpoint(const std::string& source);

struct LoadOptions {
  bool subset = false;              // tensors of the checkpoint without a destination are passed over (weights only)
  const Context* device = nullptr;  // where the destination is, if not in host memory
};

// Fills the pieces of the destination, each from all pieces of the checkpoint that it meets; no other bytes are read.
// Verifies everything before the first byte is copied: names, types, shapes and checksums. Errors name the file and
// tensor, and list what is missing or unexpected.
void load_checkpoint(const Checkpoint& checkpoint, std::span<const StoredTensor> destination,
                     const LoadOptions& options = {});
Manifest load_checkpoint(const std::string& checkpoint, std::span<const StoredTensor> destination,
                         const LoadOptions& options = {});

}  // namespace agoq::train
