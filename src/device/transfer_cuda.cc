#include "device/transfer_cuda.h"

#include "device/cuda.h"

namespace agoq::cuda {

// From pageable memory the runtime has staged all bytes when the call returns.
void upload(const Context& ctx, const void* host, const Tensor& to) {
  AGOQ_CUDA_CHECK(cudaMemcpyAsync(to.data, host, to.bytes(), cudaMemcpyHostToDevice, stream(ctx)));
}

// A copy to pageable memory waits for the stream inside the driver, where nobody looks after other ranks, and where it
// keeps other threads of the process from giving the GPU what the stream waits for. So it starts when the stream is
// done.
void download(const Context& ctx, const Tensor& from, void* host) {
  ctx.gpu().wait_for_stream(stream(ctx));
  AGOQ_CUDA_CHECK(cudaMemcpyAsync(host, from.data, from.bytes(), cudaMemcpyDeviceToHost, stream(ctx)));
  ctx.gpu().wait_for_stream(stream(ctx));
}

void copy(const Context& ctx, const Tensor& from, const Tensor& to) {
  AGOQ_CUDA_CHECK(cudaMemcpyAsync(to.data, from.data, to.bytes(), cudaMemcpyDeviceToDevice, stream(ctx)));
}

void zero(const Context& ctx, const Tensor& tensor) {
  AGOQ_CUDA_CHECK(cudaMemsetAsync(tensor.data, 0, tensor.bytes(), stream(ctx)));
}

}  // namespace agoq::cuda
