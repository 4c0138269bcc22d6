#include "device/stopwatch_cuda.h"

#include "device/cuda.h"

namespace agoq::cuda {

CUevent_st* create_event() {
  cudaEvent_t event = nullptr;
  AGOQ_CUDA_CHECK(cudaEventCreate(&event));
  return event;
}

void destroy(CUevent_st* event) noexcept {
  cudaEventDestroy(event);
}

void record(const Context& ctx, CUevent_st* event) {
  AGOQ_CUDA_CHECK(cudaEventRecord(event, stream(ctx)));
}

double seconds_between(const Context& ctx, CUevent_st* begin, CUevent_st* end) {
  ctx.gpu().wait_for(end);
  float milliseconds = 0;
  AGOQ_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
  return 1e-3 * static_cast<double>(milliseconds);
}

}  // namespace agoq::cuda
