#include "cli/program.h"

int main(int argc, char** argv) {
  return agoq::cli::run_program(argc, argv);
}
