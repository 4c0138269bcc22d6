#include "comm/launch/job_key.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>

#include "base/error.h"
#include "base/file_descriptor.h"
#include "base/text.h"
#include "comm/transport/sockets.h"

namespace agoq::comm {
namespace {

namespace fs = std::filesystem;

// Whoever answers a challenge shows a hash to whom it may concern: a secret must be too long to be guessed from it.
constexpr size_t kShortest = 16;
constexpr size_t kLongest = 4096;

std::string read_secret(const FileDescriptor& file) {
  std::string text(kLongest, '\0');
  const ssize_t count = ::read(file.get(), text.data(), text.size());
  text.resize(static_cast<size_t>(std::max<ssize_t>(count, 0)));
  return std::string(trim(text));
}

// Nobody but this user may have had a hand in it.
void require_private(const std::string& path, const struct stat& status, mode_t forbidden) {
  require(status.st_uid == ::geteuid(),
          "{} belongs to user {}, not to {}, who runs this: remove it, or set AGOQ_JOB_SECRET", path, status.st_uid,
          ::geteuid());
  require(
      (status.st_mode & forbidden) == 0,
      "{} is open to other users (mode {:o}), who could join the job: `chmod go= {}`, and remove it if others may have "
      "read it",
      path, status.st_mode & 07777, path);
}

// The secret in an existing file; none: there is no file.
std::optional<std::string> secret_in(const std::string& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.valid() && errno == ENOENT) return std::nullopt;
  require(file.valid(), "cannot read the job's secret in {}: {}", path, std::strerror(errno));
  struct stat status {};
  require(::fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode), "{} is not a file", path);
  require_private(path, status, 077);
  std::string secret = read_secret(file);
  require(secret.size() >= kShortest, "{} holds {} characters; a secret has at least {}: remove it", path,
          secret.size(), kShortest);
  return secret;
}

// Complete or absent, and never over another's: of ranks that write at the same time the first wins, also on NFS.
bool write_once(const std::string& path, const std::string& text) {
  const std::string aside = fmt::format("{}.{}", path, hex(random_digest()));
  FileDescriptor file(::open(aside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  bool written = file.valid() && ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                 ::fsync(file.get()) == 0;
  written = file.close() && written && (::link(aside.c_str(), path.c_str()) == 0 || errno == EEXIST);
  ::unlink(aside.c_str());
  return written;
}

// Of the file in this folder, which is made if it is not there; none where it cannot be made.
std::optional<std::string> secret_of(const std::string& folder) {
  const std::string path = folder + "/job-secret";
  std::error_code error;
  fs::create_directories(fs::path(folder).parent_path(), error);
  ::mkdir(folder.c_str(), 0700);
  struct stat status {};
  if (::lstat(folder.c_str(), &status) != 0) return std::nullopt;
  require(S_ISDIR(status.st_mode), "{} is not a folder", folder);
  require_private(folder, status, 022);
  if (std::optional<std::string> secret = secret_in(path)) return secret;
  if (!write_once(path, hex(random_digest()) + "\n")) return std::nullopt;
  return secret_in(path);
}

bool given(const char* value) {
  return value != nullptr && *value != '\0';
}

// "" where the user has none.
std::string folder_of_user(const Lookup& environment) {
  if (const char* const config = environment("XDG_CONFIG_HOME"); given(config)) return std::string(config) + "/agoq";
  if (const char* const home = environment("HOME"); given(home)) return std::string(home) + "/.config/agoq";
  return "";
}

JobKey key_of(const std::string& secret, const Launch& launch, const std::string& source) {
  return {keyed_hash(secret, "AGOQ job " + launch.job), source};
}

}  // namespace

std::string secret_remedy() {
  return "Put this line into the launch script, before what starts the ranks: export AGOQ_JOB_SECRET=$(head -c 24 "
         "/dev/urandom | base64) (for Open MPI also mpirun -x AGOQ_JOB_SECRET); or, on a network that you trust, let "
         "everybody in by --rendezvous-open";
}

JobKey find_job_key(const Launch& launch, bool open, const Lookup& environment, const std::string& temporary) {
  if (launch.world == 1) return {};
  if (const char* const secret = environment("AGOQ_JOB_SECRET"); given(secret)) {
    require(std::strlen(secret) >= kShortest, "AGOQ_JOB_SECRET has {} characters; it needs at least {}. {}",
            std::strlen(secret), kShortest, secret_remedy());
    return key_of(secret, launch, "AGOQ_JOB_SECRET");
  }
  if (open) return key_of("", launch, std::string(kNoSecret));
  std::vector<std::string> folders = {folder_of_user(environment)};
  if (is_loopback(launch.master_addr)) folders.push_back(fmt::format("{}/agoq-{}", temporary, ::geteuid()));
  std::vector<std::string> troubles;
  for (const std::string& folder : folders) {
    try {
      if (const std::optional<std::string> secret = folder.empty() ? std::nullopt : secret_of(folder))
        return key_of(*secret, launch, folder + "/job-secret");
      troubles.push_back(folder.empty() ? "HOME is not set" : folder + "/job-secret cannot be written");
    } catch (const Error& e) {  // of a file system that keeps neither owners nor modes, say
      troubles.emplace_back(e.what());
    }
  }
  fail(
      "the processes of a run need a secret, which keeps other programs out, and there is none to use: "
      "AGOQ_JOB_SECRET is not set; {}. {}",
      join(troubles, "; "), secret_remedy());
}

JobKey find_job_key(const Launch& launch, bool open) {
  return find_job_key(
      launch, open, [](const char* name) -> const char* { return std::getenv(name); }, "/tmp");
}

}  // namespace agoq::comm
