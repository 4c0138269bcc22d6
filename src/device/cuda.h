// For files of the CUDA backend only: checked calls of the runtime and launches.
#pragma once

#include <cuda_runtime.h>

#include "base/error.h"
#include "device/context.h"
#include "device/gpu.h"

namespace agoq::cuda {

// Throws with the call's name and CUDA's words if it failed.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) [[unlikely]]
    fail("{}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}
#define AGOQ_CUDA_CHECK(call) ::agoq::cuda::check((call), #call)

inline cudaStream_t stream(const Context& ctx) {
  return ctx.gpu().stream();
}

#if defined(__CUDACC__)
// Starts a kernel on the context's stream.
template <class... Parameters, class... Arguments>
void launch(const Context& ctx, void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  kernel<<<grid, block, 0, stream(ctx)>>>(std::forward<Arguments>(arguments)...);
  AGOQ_CUDA_CHECK(cudaGetLastError());
}
#endif

}  // namespace agoq::cuda
