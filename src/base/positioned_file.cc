#include "base/positioned_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/descriptor_limit.h"
#include "base/error.h"

namespace agoq {
namespace {

// O_NONBLOCK: opening a FIFO does not wait for a writer. A blend of many files may need more descriptors than a shell
// allows by default.
int open_to_read(const std::string& path) {
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  const int file = open(path.c_str(), kFlags);
  if (file >= 0 || errno != EMFILE) return file;
  allow_descriptors(UINT64_MAX);
  return open(path.c_str(), kFlags);
}

int64_t nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

PositionedFile::PositionedFile(std::string path) : path_(std::move(path)), file_(open_to_read(path_)) {
  require(file_.valid(), "cannot open {}: {}", path_, std::strerror(errno));
  struct stat status = {};
  const bool known = fstat(file_.get(), &status) == 0;
  require(known, "cannot read the size of {}: {}", path_, std::strerror(errno));
  require(!S_ISDIR(status.st_mode), "cannot read {}: it is a directory, a file is expected", path_);
  require(S_ISREG(status.st_mode), "cannot read {}: it is not a regular file", path_);
  size_ = static_cast<uint64_t>(status.st_size);
}

FileStamp PositionedFile::stamp() const {
  struct stat status = {};
  const bool known = fstat(file_.get(), &status) == 0;
  require(known, "cannot read the size of {}: {}", path_, std::strerror(errno));
  return {static_cast<uint64_t>(status.st_size), status.st_ino, nanoseconds(status.st_mtim),
          nanoseconds(status.st_ctim)};
}

void PositionedFile::read(uint64_t offset, std::span<uint8_t> out) const {
  while (!out.empty()) {
    const ssize_t count = pread(file_.get(), out.data(), out.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    require(count >= 0, "cannot read {} at byte {}: {}", path_, offset, std::strerror(errno));
    require(count > 0, "{} ends at byte {}; it had {} bytes when it was opened, something has shortened it since",
            path_, offset, size_);
    offset += static_cast<uint64_t>(count);
    out = out.subspan(static_cast<size_t>(count));
  }
}

}  // namespace agoq
