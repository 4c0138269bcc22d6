// Files that are complete or absent, even across a power cut: written aside, synced, renamed, the folder synced.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/file_descriptor.h"

namespace agoq {

// Writes path.tmp-<pid> and gives it its name on commit(). Without commit() nothing is left behind. Every error names
// the path and how many bytes were written before it. One writer per path and process at a time.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;

  void write(std::span<const uint8_t> bytes);
  void write(std::string_view text);
  void commit();

  uint64_t written() const { return written_; }
  const std::string& path() const { return path_; }
  const std::string& temporary_path() const { return temporary_; }

 private:
  [[noreturn]] void fail_with_errno(std::string_view action) const;

  std::string path_;
  std::string temporary_;  // empty once committed or moved from
  FileDescriptor file_;
  uint64_t written_ = 0;
};

void write_file_atomically(const std::string& path, std::string_view content);

// Makes earlier renames, creations and deletions inside a directory durable.
void sync_directory(const std::string& path);

// Renames a directory, whose files are already synced, and syncs the parents. `to` must be absent or an empty
// directory.
void rename_directory_durably(const std::string& from, const std::string& to);

}  // namespace agoq
