#include "cli/line_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace agoq::cli {
namespace {

struct Pipe {
  Pipe() {
    const bool made = pipe2(ends.data(), O_CLOEXEC) == 0;
    require(made, "cannot make a pipe: {}", std::strerror(errno));
  }
  ~Pipe() {
    for (const int end : ends)
      if (end >= 0) close(end);
  }
  FILE* open(size_t end, const char* mode) { return fdopen(std::exchange(ends[end], -1), mode); }
  std::array<int, 2> ends{-1, -1};
};

}  // namespace

LineProcess::LineProcess(std::vector<std::string> command, Messages messages) : name_(command.at(0)) {
  std::signal(SIGPIPE, SIG_IGN);  // a child that is gone shows as a failed write
  Pipe questions, answers;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, questions.ends[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, answers.ends[1], STDOUT_FILENO);
  if (messages == Messages::Dropped)
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int error = posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  require(error == 0, "cannot run {}: {}", name_, std::strerror(error));
  to_ = questions.open(1, "w");
  from_ = answers.open(0, "r");
}

LineProcess::~LineProcess() {
  if (to_) std::fclose(to_);  // its end of input
  if (from_) std::fclose(from_);
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
}

std::string LineProcess::ask(const std::string& line) {
  std::fwrite(line.data(), 1, line.size(), to_);
  std::fputc('\n', to_);
  const bool asked = std::fflush(to_) == 0;
  std::string answer;
  int c = EOF;
  while (asked && (c = std::fgetc(from_)) != EOF && c != '\n') answer += static_cast<char>(c);
  require(asked && c == '\n', "{} ended without an answer; its message stands above", name_);
  return answer;
}

}  // namespace agoq::cli
