// The program `agoq`: finds the command, runs it, turns errors into one line and an exit status.
#pragma once

namespace agoq::cli {

// Exit status: 0 done, 1 it failed (one line on stderr says why), 2 the command line is wrong.
int run_program(int argc, char** argv);

}  // namespace agoq::cli
