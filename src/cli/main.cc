#include "cli/environment.h"
#include "cli/program.h"

int main(int argc, char** argv) {
  agoq::cli::settle_environment(argv);
  return agoq::cli::run_program(argc, argv);
}
