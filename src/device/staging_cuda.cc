#include <cstring>

#include "device/cuda.h"
#include "device/staging.h"

namespace agoq {

void Staging::open_buffers() {
  for (PinnedBuffer& buffer : buffers_) {
    AGOQ_CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&buffer.data), bytes_));
    AGOQ_CUDA_CHECK(cudaEventCreateWithFlags(&buffer.copied, cudaEventDisableTiming));
  }
}

void Staging::close_buffers() noexcept {
  for (PinnedBuffer& buffer : buffers_) {
    if (buffer.copied) cudaEventDestroy(buffer.copied);
    if (buffer.data) cudaFreeHost(buffer.data);
  }
}

void Staging::load_pinned(const Context& ctx, std::initializer_list<Copy> copies) {
  PinnedBuffer& buffer = buffers_[next_];
  next_ = (next_ + 1) % buffers_.size();
  ctx.gpu().wait_for(buffer.copied);
  uint8_t* at = buffer.data;
  for (const Copy& copy : copies) {
    std::memcpy(at, copy.from.data, copy.from.bytes());
    AGOQ_CUDA_CHECK(cudaMemcpyAsync(copy.to.data, at, copy.to.bytes(), cudaMemcpyHostToDevice, cuda::stream(ctx)));
    at += copy.from.bytes();
  }
  AGOQ_CUDA_CHECK(cudaEventRecord(buffer.copied, cuda::stream(ctx)));
}

}  // namespace agoq
