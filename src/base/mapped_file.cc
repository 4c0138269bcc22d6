#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/file_descriptor.h"

namespace agoq {

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  // Without O_NONBLOCK a FIFO is waited for, until somebody writes to it. Of a regular file it changes nothing.
  const FileDescriptor file(open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  require(file.valid(), "cannot open {}: {}", path_, std::strerror(errno));
  struct stat status = {};
  const bool known = fstat(file.get(), &status) == 0;
  require(known, "cannot read the size of {}: {}", path_, std::strerror(errno));
  require(!S_ISDIR(status.st_mode), "cannot read {}: it is a directory, a file is expected", path_);
  require(S_ISREG(status.st_mode), "cannot map {}: it is not a regular file", path_);
  if (status.st_size == 0) return;
  const auto size = static_cast<size_t>(status.st_size);
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  require(data != MAP_FAILED, "cannot map {} ({} bytes): {}", path_, size, std::strerror(errno));
  data_ = static_cast<const uint8_t*>(data);
  size_ = size;
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<uint8_t*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace agoq
