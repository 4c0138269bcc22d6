// A file mapped read-only into memory: opened in no time whatever its size, and only the pages that are read are
// loaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace agoq {

// The file must not shrink while it is mapped: that is what rename-into-place (atomic_file.h) is for.
class MappedFile {
 public:
  explicit MappedFile(std::string path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;  // null for an empty file
  size_t size_ = 0;
};

}  // namespace agoq
