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
// Starts a kernel on the context's stream; its CTAs have `shared` bytes of memory beside what it declares.
template <class... Parameters, class... Arguments>
void launch_with(const Context& ctx, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                 Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  kernel<<<grid, block, shared, stream(ctx)>>>(std::forward<Arguments>(arguments)...);
  AGOQ_CUDA_CHECK(cudaGetLastError());
}
template <class... Parameters, class... Arguments>
void launch(const Context& ctx, void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments&&... arguments) {
  launch_with(ctx, kernel, grid, block, 0, std::forward<Arguments>(arguments)...);
}
#endif

}  // namespace agoq::cuda
