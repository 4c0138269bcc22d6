// A child process that answers one line to each line it is asked.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace agoq::cli {

class LineProcess {
 public:
  enum class Messages : uint8_t { Shown, Dropped };  // what it writes to stderr
  explicit LineProcess(std::vector<std::string> command, Messages messages = Messages::Shown);
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
