#include "cli/environment.h"

#include <cblas.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace agoq::cli {
namespace {

bool set_if_unset(const char* name, const char* value) {
  return std::getenv(name) == nullptr && setenv(name, value, 0) == 0;
}

// OpenBLAS falls back to AVX2 kernels on CPUs younger than itself.
bool blas_overlooks_avx512() {
#if defined(__x86_64__)
  const std::string_view core = openblas_get_corename();
  const bool avx2 = core == "Haswell" || core == "Zen" || core == "Excavator";
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

}  // namespace

void settle_environment(char** argv) {
  bool changed = blas_overlooks_avx512() && set_if_unset("OPENBLAS_CORETYPE", "SkylakeX");
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) changed |= set_if_unset("GOMP_SPINCOUNT", "10000");
  // Should starting again fail, the program goes on as it is: slower, not wrong.
  if (changed) execv("/proc/self/exe", argv);
}

}  // namespace agoq::cli
