// A child process that answers one line to each line it is asked.
#pragma once

#include <sys/types.h>

#include <cstdio>
#include <string>
#include <vector>

namespace agoq::cli {

class LineProcess {
 public:
  // Its stderr is ours, so that people see its own messages.
  explicit LineProcess(std::vector<std::string> command);
  ~LineProcess();
  LineProcess(const LineProcess&) = delete;
  LineProcess& operator=(const LineProcess&) = delete;

  // Throws when the process ends without an answer.
  std::string ask(const std::string& line);

 private:
  std::string name_;
  pid_t pid_ = -1;
  FILE* to_ = nullptr;
  FILE* from_ = nullptr;
};

}  // namespace agoq::cli
