// The program `agoq`: finds the command, runs it, turns errors into one line and an exit status.
#pragma once

#include <exception>
#include <string>

namespace agoq::cli {

// Exit status: 0 done, kFailed (one line on stderr says why), kWrongUsage: the command line is wrong.
inline constexpr int kFailed = 1, kWrongUsage = 2;
int run_program(int argc, char** argv);
// What a person is told of an error.
std::string text_of(const std::exception& error);

}  // namespace agoq::cli
