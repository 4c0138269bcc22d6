// Runs the real program as several processes, with what torchrun would leave in their environment.
#pragma once

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/file_descriptor.h"
#include "cli/program.h"
#include "comm/transport/sockets.h"

namespace agoq::test {

using Words = std::vector<std::string>;

inline Words operator+(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

// Free a moment ago, and none that the system hands out to connections.
inline int free_port() {
  static std::mt19937 random{std::random_device{}()};
  while (true) {
    const int port = std::uniform_int_distribution(20000, 31999)(random);
    try {
      comm::listen_tcp(port, "localhost");
      return port;
    } catch (const Error&) {
      continue;
    }
  }
}

// What is said to one rank alone.
struct Apart {
  Words arguments = {};    // after those of all
  Words environment = {};  // "NAME=value", over what all have
  std::string program = AGOQ_PROGRAM;
  std::string folder = {};            // in which it runs
  rlim_t file_bytes = RLIM_INFINITY;  // files may grow to this size, as on a disk that is full
  bool absent = false;                // it never starts
};

class Ranks {
 public:
  Ranks(int world, const Words& arguments, std::map<int, Apart> apart = {}, int port = free_port())
      : world_(world), port_(port) {
    settle_blas_core();
    for (int rank = 0; rank < world; ++rank) children_.push_back(start(rank, arguments, apart[rank]));
  }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;
  ~Ranks() {
    for (int rank = 0; rank < world_; ++rank) signal(rank, SIGKILL);
    while (reap()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }

  void signal(int rank, int number) const {
    if (child(rank).pid > 0) ::kill(child(rank).pid, number);
  }
  // Polls until it is so; false if it is not within a minute, or all have ended.
  bool until(const std::function<bool()>& so) {
    for (int i = 0; i < 12000; ++i) {
      if (so()) return true;
      if (!reap()) return so();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }
  bool until_lines(const std::string& file, int64_t lines) {
    return until([&] {
      const std::string text = read_plainly(file);
      return std::count(text.begin(), text.end(), '\n') >= lines;
    });
  }

  // Waits for all but `hung`, which are killed then; whoever goes on for longer than `patience` is, too, and has status
  // 128 + SIGKILL.
  std::vector<Ran> wait(const std::vector<int>& hung = {},
                        std::chrono::milliseconds patience = std::chrono::seconds(60)) {
    const auto awaited = [&](int rank) {
      return child(rank).pid > 0 && std::find(hung.begin(), hung.end(), rank) == hung.end();
    };
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (std::chrono::steady_clock::now() < deadline) {
      reap();
      bool any = false;
      for (int rank = 0; rank < world_; ++rank) any = any || awaited(rank);
      if (!any) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    for (int rank = 0; rank < world_; ++rank) signal(rank, SIGKILL);
    while (reap()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::vector<Ran> all;
    for (int rank = 0; rank < world_; ++rank)
      all.push_back({child(rank).status, read_plainly(output(rank, "out")), read_plainly(output(rank, "err"))});
    return all;
  }

 private:
  struct Child {
    pid_t pid = 0;  // 0: it has ended
    int status = -1;
  };
  Child& child(int rank) { return children_[static_cast<size_t>(rank)]; }
  const Child& child(int rank) const { return children_[static_cast<size_t>(rank)]; }
  std::string output(int rank, const char* stream) const { return folder_.file(stream + std::to_string(rank)); }

  Child start(int rank, const Words& arguments, const Apart& apart) const {
    if (apart.absent) return {};
    Words words = Words{apart.program} + arguments + apart.arguments;
    const std::string place = std::to_string(rank), world = std::to_string(world_);
    Words settings = Words{"RANK=" + place,
                           "WORLD_SIZE=" + world,
                           "LOCAL_RANK=" + place,
                           "LOCAL_WORLD_SIZE=" + world,
                           "MASTER_ADDR=127.0.0.1",
                           "MASTER_PORT=29500",
                           "AGOQ_JOB_SECRET=of-the-tests-alone",
                           "AGOQ_MASTER_PORT=" + std::to_string(port_),
                           "OMP_WAIT_POLICY=passive"} +
                     apart.environment;
    const std::string out = output(rank, "out"), err = output(rank, "err");
    const pid_t pid = ::fork();
    if (pid != 0) return {pid, -1};
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // should the test itself be killed
    for (std::string& setting : settings) ::putenv(setting.data());
    redirect("/dev/null", STDIN_FILENO, O_RDONLY);
    redirect(out, STDOUT_FILENO, O_WRONLY | O_CREAT | O_APPEND);
    redirect(err, STDERR_FILENO, O_WRONLY | O_CREAT | O_APPEND);
    if (!apart.folder.empty() && ::chdir(apart.folder.c_str()) != 0) ::_exit(127);
    if (apart.file_bytes != RLIM_INFINITY) {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit = {apart.file_bytes, RLIM_INFINITY};
      ::setrlimit(RLIMIT_FSIZE, &limit);
    }
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }

  static void redirect(const std::string& file, int to, int flags) {
    const FileDescriptor opened(::open(file.c_str(), flags | O_CLOEXEC, 0600));
    ::dup2(opened.get(), to);
  }

  // Whether any are left.
  bool reap() {
    bool left = false;
    for (Child& it : children_) {
      int status = 0;
      if (it.pid > 0 && ::waitpid(it.pid, &status, WNOHANG) == it.pid)
        it = {0, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)};
      left = left || it.pid > 0;
    }
    return left;
  }

  int world_, port_;
  ScratchFolder folder_;
  std::vector<Child> children_;
};

// Of a run folder, line by line, without what differs from run to run: the times.
inline std::vector<nlohmann::json> metrics_of(const std::string& folder) {
  std::vector<nlohmann::json> lines;
  for (const std::string& line : split(trim(read_plainly(folder + "/metrics.jsonl")), '\n')) {
    nlohmann::json entry = nlohmann::json::parse(line);
    for (const char* timed : {"step_ms", "tokens_per_second", "tflops", "mfu", "exposed_ms"}) entry.erase(timed);
    lines.push_back(entry);
  }
  return lines;
}

// What a mesh trains in these tests: so small that processes, not numbers, take the time.
class TinyMeshRun : public TinyRun {
 public:
  TinyMeshRun() {
    std::string model = read_plainly(model_path());
    model.replace(model.find("\"num_hidden_layers\": 2"), 22, "\"num_hidden_layers\": 4");
    write_plainly(model_path(), model);
  }
  Words arguments(int steps, const std::string& save, const Words& more = {}) const {
    return Words{"train",
                 "--device",
                 "cpu",
                 "--threads",
                 "1",
                 "--model-config",
                 model_path(),
                 "--data-path",
                 text_path(),
                 "--seq-length",
                 "32",
                 "--micro-batch-size",
                 "1",
                 "--global-batch-size",
                 "8",
                 "--lr",
                 "5e-3",
                 "--lr-decay-style",
                 "constant",
                 "--train-iters",
                 std::to_string(steps),
                 "--save",
                 file(save)} +
           more;
  }
  std::string metrics(const std::string& save) const { return file(save) + "/metrics.jsonl"; }
};

// A mesh by its settings.
struct MeshSetting {
  std::string name;
  int world;
  Words settings;
};
inline const MeshSetting kTp2{"tp2", 2, {"--tensor-model-parallel-size", "2"}};
inline const MeshSetting kPp2{
    "pp2", 2, {"--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "2"}};
inline const MeshSetting kDp2{"dp2", 2, {}};
inline const MeshSetting kTp2Dp2{"tp2 x dp2", 4, {"--tensor-model-parallel-size", "2"}};
inline const MeshSetting kTp2Dp2Pp2{
    "2 x 2 x 2", 8, {"--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"}};

}  // namespace agoq::test
