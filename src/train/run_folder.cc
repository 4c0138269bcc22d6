#include "train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text.h"

namespace agoq::train {
namespace {

// The process that the lock file names; for a message only.
std::string holder_of(int lock_file) {
  std::array<char, 32> text{};
  const ssize_t n = pread(lock_file, text.data(), text.size(), 0);
  const std::string pid(trim({text.data(), n > 0 ? static_cast<size_t>(n) : 0}));
  return pid.empty() ? "another process" : "process " + pid;
}

}  // namespace

RunFolder::RunFolder(std::string path) : path_(std::move(path)) {
  require(!path_.empty(), "the run folder has no name");
  std::error_code error;
  std::filesystem::create_directories(path_, error);
  require(!error, "cannot create the run folder {}: {}", path_, error.message());
  prove_writable();
  lock();
}

std::string RunFolder::file(std::string_view name) const {
  return fmt::format("{}/{}", path_, name);
}

void RunFolder::prove_writable() const {
  try {
    AtomicFile probe(file("probe"));
    probe.write(std::string(4096, '\n'));  // a full disk still creates empty files
    probe.commit();
  } catch (const Error& e) {
    fail("the run folder {} cannot be used: {}", path_, e.what());
  }
  const bool removed = unlink(file("probe").c_str()) == 0;
  require(removed, "the run folder {} cannot be used: cannot remove a file in it: {}", path_, std::strerror(errno));
}

void RunFolder::lock() {
  const std::string path = file("lock");
  lock_ = FileDescriptor(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  require(lock_.valid(), "cannot open {}: {}", path, std::strerror(errno));
  if (flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    require(errno != EWOULDBLOCK, "the run folder {} is in use by {}; wait for it, stop it, or choose another folder",
            path_, holder_of(lock_.get()));
    log_warning("{} cannot be locked ({}); make sure that no other run uses this folder", path, std::strerror(errno));
    return;
  }
  const std::string pid = fmt::format("{}\n", getpid());
  const bool written = ftruncate(lock_.get(), 0) == 0 &&
                       pwrite(lock_.get(), pid.data(), pid.size(), 0) == static_cast<ssize_t>(pid.size());
  require(written, "cannot write {}: {}", path, std::strerror(errno));
}

void RunFolder::write(std::string_view name, std::string_view content) const {
  write_file_atomically(file(name), content);
}

void RunFolder::write_json(std::string_view name, std::string_view json) const {
  const auto parsed = nlohmann::ordered_json::parse(json, nullptr, false);
  require(!parsed.is_discarded(), "{}: the text to be written is no JSON", file(name));
  write(name, parsed.dump(2) + "\n");
}

}  // namespace agoq::train
