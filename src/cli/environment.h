// Settings that OpenBLAS and OpenMP read from the environment when they are loaded, before main() runs.
#pragma once

namespace agoq::cli {

// Chooses them where the user has not, and starts the program again with them, once. Returns where nothing is to be
// done. For main() of the program alone: a library leaves the environment as it is.
//   OPENBLAS_CORETYPE  kernels that use the CPU's vectors, where OpenBLAS has chosen others (cli/blas_core.h)
//   GOMP_SPINCOUNT     threads that wait soon sleep: a busy machine loses nothing, an idle one microseconds
void settle_environment(char** argv);

}  // namespace agoq::cli
