// For files of the CUDA backend only: checked calls of the runtime and launches.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <utility>

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

// The answer to a query: whether the GPU is there yet.
inline bool done(cudaError_t status, const char* what) {
  if (status == cudaErrorNotReady) {
    cudaGetLastError();  // not an error, but kept as one
    return false;
  }
  check(status, what);
  return true;
}

inline cudaStream_t stream(const Context& ctx) {
  return ctx.stream();
}

// A point in the work of a stream.
class Event {
 public:
  Event() { AGOQ_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  cudaEvent_t get() const { return event_; }
  void record(cudaStream_t stream) { AGOQ_CUDA_CHECK(cudaEventRecord(event_, stream)); }
  // What is put into `stream` from now on runs after the point; the host does not wait.
  void hold(cudaStream_t stream) const { AGOQ_CUDA_CHECK(cudaStreamWaitEvent(stream, event_)); }
  bool reached() const { return done(cudaEventQuery(event_), "cudaEventQuery"); }

 private:
  cudaEvent_t event_ = nullptr;
};

#if defined(__CUDACC__)
// Whether CTAs of a kernel may be started while the kernel before it on the stream ends (programmatic dependent
// launch), which hides a start's microseconds. All code must then be for GPUs that have it, 9.0 and newer: older code
// would run on them without waiting. To see what it gains, set it to false.
inline constexpr bool kOverlapLaunches = std::min({__CUDA_ARCH_LIST__}) >= 900;
// Whether CTAs can be started as clusters, which share their memories: on GPUs from 9.0 on.
inline constexpr bool kClusters = kOverlapLaunches;

// All that a kernel is given, as its one parameter. It gets at it by waiting until the work before it on its stream has
// ended and can be seen, so it cannot touch memory too early, and launch() knows that it may be started early. Called
// first, by all threads.
template <class T>
class PdlArgs {
 public:
  PdlArgs(const T& given) : given_(given) {}
  __device__ const T& wait() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
    return given_;
  }

 private:
  T given_;
};
template <class Parameter>
inline constexpr bool kIsPdlArgs = false;
template <class T>
inline constexpr bool kIsPdlArgs<PdlArgs<T>> = true;

// Beyond 48 KiB, with what it declares itself, a kernel must be allowed to have it.
inline constexpr size_t kUnaskedSharedMemory = size_t{32} << 10;

// What is started, beside the kernel and its arguments.
struct Grid {
  dim3 ctas, threads;
  size_t shared = 0;     // bytes of shared memory of a CTA, beside what the kernel declares
  unsigned cluster = 1;  // neighbouring CTAs that form one
};

// Starts a kernel on the context's stream.
template <class... Parameters, class... Arguments>
void launch(const Context& ctx, const Grid& grid, void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (grid.ctas.x == 0 || grid.ctas.y == 0) return;
  if (grid.shared > kUnaskedSharedMemory)
    AGOQ_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared)));
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (kOverlapLaunches && (kIsPdlArgs<Parameters> && ...)) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (grid.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {grid.cluster, 1, 1};
  }
  const cudaLaunchConfig_t config{grid.ctas, grid.threads, grid.shared, stream(ctx), attributes, count};
  AGOQ_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}
template <class... Parameters, class... Arguments>
void launch(const Context& ctx, void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments&&... arguments) {
  launch(ctx, Grid{grid, block}, kernel, std::forward<Arguments>(arguments)...);
}
#endif

}  // namespace agoq::cuda
