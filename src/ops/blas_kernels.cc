#include "ops/blas_kernels.h"

#include <cblas.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace agoq::ops {
namespace {

#if defined(__x86_64__)
// What the kernels of Skylake-X are compiled for.
bool runs_skylake_x_code() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool runs_skylake_x_code() { return false; }
#endif

}  // namespace

void use_widest_blas_kernels(char** argv) {
  constexpr const char* kChoice = "OPENBLAS_CORETYPE";
  const std::string_view chosen = openblas_get_corename();
  const bool only_avx2 = chosen == "Haswell" || chosen == "Zen";
  if (std::getenv(kChoice) || !only_avx2 || !runs_skylake_x_code()) return;
  setenv(kChoice, "SkylakeX", 1);
  execv("/proc/self/exe", argv);
  unsetenv(kChoice);  // it did not work: go on with what there is
}

}  // namespace agoq::ops
