#include "base/atomic_file.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/error.h"

namespace agoq {
namespace {

std::string parent_of(std::string_view path) {
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  // A leftover of a killed process with our process number (common in containers) is overwritten.
  const std::string temporary = fmt::format("{}.tmp-{}", path_, getpid());
  file_ = FileDescriptor(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!file_.valid()) fail_with_errno("create");
  temporary_ = temporary;
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      file_(std::move(other.file_)),
      written_(std::exchange(other.written_, 0)) {}

void AtomicFile::write(std::span<const uint8_t> bytes) {
  require(file_.valid(), "cannot write {}: it is already committed", path_);
  constexpr size_t kPiece = size_t{1} << 30;  // Linux writes at most 2 GiB a call
  while (!bytes.empty()) {
    const ssize_t n = ::write(file_.get(), bytes.data(), std::min(bytes.size(), kPiece));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_with_errno("write");
    bytes = bytes.subspan(static_cast<size_t>(n));
    written_ += static_cast<uint64_t>(n);
  }
}

void AtomicFile::write(std::string_view text) {
  write({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

void AtomicFile::commit() {
  require(file_.valid(), "cannot commit {}: it is already committed", path_);
  if (fsync(file_.get()) != 0) fail_with_errno("sync");
  if (!file_.close()) fail_with_errno("close");
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail_with_errno("rename the finished file to");
  temporary_.clear();
  sync_directory(parent_of(path_));
}

void AtomicFile::fail_with_errno(std::string_view action) const {
  const int code = errno;
  const char* advice = "";
  if (code == ENOSPC || code == EDQUOT) advice = "; free some space or choose another folder";
  if (code == EACCES || code == EPERM || code == EROFS) advice = "; check that you may write to this folder";
  if (code == ENOENT) advice = "; its folder does not exist";
  fail("cannot {} {}: {} after {} bytes{}", action, path_, std::strerror(code), written_, advice);
}

void write_file_atomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

void sync_directory(const std::string& path) {
  const FileDescriptor directory(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  require(directory.valid(), "cannot open the folder {}: {}", path, std::strerror(errno));
  if (fsync(directory.get()) == 0) return;
  // Some network file systems cannot sync a folder and say so with EINVAL; their renames are durable on their own.
  require(errno == EINVAL || errno == ENOTSUP, "cannot sync the folder {}: {}", path, std::strerror(errno));
}

void rename_directory_durably(const std::string& from, const std::string& to) {
  sync_directory(from);
  const bool renamed = std::rename(from.c_str(), to.c_str()) == 0;
  require(renamed, "cannot rename {} to {}: {}", from, to, std::strerror(errno));
  sync_directory(parent_of(to));
  if (parent_of(from) != parent_of(to)) sync_directory(parent_of(from));
}

}  // namespace agoq
