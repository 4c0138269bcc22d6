// The safetensors file format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes without
// holes. https://huggingface.co/docs/safetensors
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/atomic_file.h"
#include "base/checksum.h"
#include "base/dtype.h"
#include "base/mapped_file.h"
#include "base/tensor.h"

namespace agoq {

struct TensorEntry {
  std::string name;
  std::string format_dtype;    // as the file says: "BF16", "F8_E4M3", ...
  std::optional<DType> dtype;  // none for types that the format knows and we cannot compute with
  std::vector<int64_t> shape;  // any rank; empty for a scalar
  int64_t count = 0;           // elements
  uint64_t offset = 0;         // of the first byte, from the start of the data
  uint64_t size = 0;           // bytes
};

struct SafetensorsHeader {
  std::vector<TensorEntry> entries;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  // offset of the data in the file
};

// Checks everything before anything is believed: sizes, JSON, dtypes, shapes, and that the tensors cover the data
// exactly. `file` is the whole file; `path` is for messages.
SafetensorsHeader parse_safetensors_header(std::span<const uint8_t> file, std::string_view path);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(std::string path);

  const std::string& path() const { return file_.path(); }
  const std::vector<TensorEntry>& entries() const { return header_.entries; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  const TensorEntry* find(std::string_view name) const;  // null if absent
  const TensorEntry& at(std::string_view name) const;    // an error with the nearest names if absent

  // `entry` must come from this file. Bytes may lie at any alignment.
  std::span<const uint8_t> bytes(const TensorEntry& entry) const;

  // A host view into the file, never to be written to. A scalar is seen as [1]. Throws on more than four dimensions, on
  // a dtype that we cannot compute with, and on bytes that are not aligned for it (files by old writers).
  Tensor tensor(const TensorEntry& entry) const;

  // Elements [first, first + out.size()) of an fp32, bf16 or fp16 tensor at any alignment, widened to float.
  void read_floats(const TensorEntry& entry, int64_t first, std::span<float> out) const;

 private:
  DType supported_dtype(const TensorEntry& entry) const;

  MappedFile file_;
  SafetensorsHeader header_;
  std::map<std::string_view, const TensorEntry*> by_name_;
};

struct TensorHeader {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
};

// Streams tensors into a file that appears, complete and synced, on commit(). Tensors are written in declared order,
// whole
// (`write`) or in pieces (`begin`, `append`...). Declare wide types first and every tensor is aligned for its type.
class SafetensorsWriter {
 public:
  SafetensorsWriter(std::string path, const std::vector<TensorHeader>& tensors,
                    const std::map<std::string, std::string>& metadata = {});

  void begin(std::string_view name);
  void append(std::span<const uint8_t> piece);
  void write(std::string_view name, std::span<const uint8_t> bytes);
  void commit();

  uint64_t checksum(std::string_view name) const;  // XXH3 of a tensor that is completely written
  uint64_t bytes_written() const { return file_.written(); }

 private:
  struct WrittenTensor {
    std::string name;
    uint64_t size = 0;
    uint64_t checksum = 0;
  };
  void require_current_complete() const;

  AtomicFile file_;
  std::vector<WrittenTensor> slots_;
  size_t begun_ = 0;        // tensors begun so far; the last of them is current
  uint64_t remaining_ = 0;  // bytes of the current tensor still to come
  Xxh3 hash_;
};

}  // namespace agoq
