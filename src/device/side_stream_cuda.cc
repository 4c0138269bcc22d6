#include "device/cuda.h"
#include "device/side_stream.h"

namespace agoq {

void SideStream::open() {
  int lowest = 0, highest = 0;
  AGOQ_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  AGOQ_CUDA_CHECK(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest));
  AGOQ_CUDA_CHECK(cudaEventCreateWithFlags(&point_, cudaEventDisableTiming));
}

void SideStream::close() noexcept {
  if (point_) cudaEventDestroy(point_);
  if (stream_) cudaStreamDestroy(stream_);
}

// A wait means the point as it was recorded last, so one event does for any number of them.
void SideStream::order(CUstream_st* first, CUstream_st* then) {
  AGOQ_CUDA_CHECK(cudaEventRecord(point_, first));
  AGOQ_CUDA_CHECK(cudaStreamWaitEvent(then, point_));
}

void SideStream::record(SideMark& mark) {
  if (!mark.event_) AGOQ_CUDA_CHECK(cudaEventCreateWithFlags(&mark.event_, cudaEventDisableTiming));
  AGOQ_CUDA_CHECK(cudaEventRecord(mark.event_, stream_));
}

void SideStream::hold(CUstream_st* stream, const SideMark& mark) {
  AGOQ_CUDA_CHECK(cudaStreamWaitEvent(stream, mark.event_));
}

void SideMark::close() noexcept {
  if (event_) cudaEventDestroy(event_);
}

}  // namespace agoq
