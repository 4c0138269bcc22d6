// Settings that libraries read from the environment, and that have no API.
#pragma once

#include <string>
#include <vector>

namespace agoq::cli {

// Chooses them where the user has not; a value of the user's is never replaced. For main() of the program alone, before
// any thread: a library leaves the environment as it is. OpenBLAS and OpenMP read theirs when they are loaded, before
// main() runs, so for them the program starts again, once; otherwise it returns.
//   OPENBLAS_CORETYPE            kernels that use the CPU's vectors, where OpenBLAS has chosen others (cli/blas_core.h)
//   GOMP_SPINCOUNT               threads that wait soon sleep: a busy machine loses nothing, an idle one microseconds
//   CUDA_DEVICE_MAX_CONNECTIONS  a queue of the GPU for every stream (device/gpu_queues.h)
//   NCCL_NVLS_ENABLE             no NVLink multicast: it needs rights that containers often lack, and nothing needs it
void settle_environment(char** argv);

// A variable of this process's environment.
struct EnvironmentVariable {
  std::string name, value;
  bool chosen = false;  // by settle_environment(), not by the user
};
// Those of the list above that are set, in its order.
std::vector<EnvironmentVariable> settled_environment();

// "set     NAME=value NAME=value" of those that settle_environment() has chosen, for the start of a run; empty if there
// are none.
std::string chosen_variables();

}  // namespace agoq::cli
