// A file that is read by copies from any place, for what a long run reads all along: a file that shrinks or a disk that
// fails is an Error here, where a mapped file (mapped_file.h) ends the process with SIGBUS.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/file_descriptor.h"

namespace agoq {

// Changes whenever a file's bytes do: every write sets ctime, which no program can set back.
struct FileStamp {
  uint64_t size = 0, inode = 0;
  int64_t mtime_ns = 0, ctime_ns = 0;  // since 1970
  bool operator==(const FileStamp&) const = default;
};

class PositionedFile {
 public:
  explicit PositionedFile(std::string path);  // an Error where it is no regular file; a FIFO is not waited for

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // when it was opened
  FileStamp stamp() const;                 // of now

  // Bytes [offset, offset + out.size()). Threads may read at the same time.
  void read(uint64_t offset, std::span<uint8_t> out) const;

 private:
  std::string path_;
  FileDescriptor file_;
  uint64_t size_ = 0;
};

}  // namespace agoq
