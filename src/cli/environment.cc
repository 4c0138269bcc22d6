#include "cli/environment.h"

#include <unistd.h>

#include <cstdlib>
#include <string>

#include "cli/blas_core.h"

namespace agoq::cli {
namespace {

bool set_if_unset(const char* name, const char* value) {
  return std::getenv(name) == nullptr && setenv(name, value, 0) == 0;
}

// A value that does not help is found set at the next start: the program starts again once at most.
bool choose_blas_core() {
  const std::string core(faster_blas_core());
  return !core.empty() && set_if_unset("OPENBLAS_CORETYPE", core.c_str());
}

}  // namespace

void settle_environment(char** argv) {
  bool changed = choose_blas_core();
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) changed |= set_if_unset("GOMP_SPINCOUNT", "10000");
  // Should starting again fail, the program goes on as it is: slower, not wrong.
  if (changed) execv("/proc/self/exe", argv);
}

}  // namespace agoq::cli
