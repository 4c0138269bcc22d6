#include <algorithm>
#include <cstring>

#include "base/polling.h"
#include "device/cuda.h"

namespace agoq {
namespace {

constexpr int kOldestMajor = 8;  // Ampere: bf16 matrix products
constexpr auto kBetweenChecks = std::chrono::milliseconds(10);
constexpr const char* kRemedy = "use --device cpu, or see `agoq doctor`";

std::string driver_problem() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return fmt::format("no NVIDIA driver is loaded; install one, or {}", kRemedy);
  if (driver / 1000 < runtime / 1000)
    return fmt::format("the NVIDIA driver supports CUDA {}.{}, this build needs CUDA {}; update the driver, or {}",
                       driver / 1000, driver % 1000 / 10, runtime / 1000, kRemedy);
  return "";
}

std::string gpu_problem(int ordinal) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    return fmt::format("no NVIDIA GPU is visible to this process; {}", kRemedy);
  if (status != cudaSuccess) return fmt::format("CUDA does not start: {}; {}", cudaGetErrorString(status), kRemedy);
  if (ordinal >= count) return fmt::format("there is no GPU {}: {} are visible; {}", ordinal, count, kRemedy);
  cudaDeviceProp properties{};
  AGOQ_CUDA_CHECK(cudaGetDeviceProperties(&properties, ordinal));
  if (properties.major < kOldestMajor)
    return fmt::format("the GPU {} has compute capability {}.{}, needed is {}.0 (Ampere) or newer; {}", properties.name,
                       properties.major, properties.minor, kOldestMajor, kRemedy);
  return "";
}

std::string problem(int ordinal) {
  const std::string driver = driver_problem();
  return driver.empty() ? gpu_problem(ordinal) : driver;
}

}  // namespace

LibraryVersion cuda_runtime_version() {
  const auto number = [](int version) { return LibraryVersion::Number{version / 1000, version % 1000 / 10, 0}; };
  int loaded = 0, driver = 0;
  AGOQ_CUDA_CHECK(cudaRuntimeGetVersion(&loaded));
  cudaDriverGetVersion(&driver);
  const std::string name =
      driver == 0 ? "CUDA runtime" : fmt::format("CUDA runtime (driver: CUDA {})", text(number(driver)));
  return {name, number(CUDART_VERSION), number(loaded)};
}

int visible_gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // whoever opens a GPU is told why there is none
  return 0;
}

std::string why_no_gpu() {
  return problem(0);
}

Gpu::Gpu(int ordinal) : ordinal_(ordinal) {
  open();
  AGOQ_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  owns_stream_ = true;
}

Gpu::Gpu(int ordinal, CUstream_st* stream) : ordinal_(ordinal), stream_(stream) {
  open();
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return;  // of any GPU
  int of_stream = 0;
  AGOQ_CUDA_CHECK(cudaStreamGetDevice(stream, &of_stream));
  require(of_stream == ordinal, "a stream of GPU {} was given as the compute stream of GPU {}", of_stream, ordinal);
}

void Gpu::open() {
  const std::string why = problem(ordinal_);
  require(why.empty(), "--device cuda: {}", why);
  make_current();
  cudaDeviceProp properties{};
  AGOQ_CUDA_CHECK(cudaGetDeviceProperties(&properties, ordinal_));
  name_ = properties.name;
  static_assert(sizeof(properties.uuid) == sizeof(uuid_));
  std::memcpy(uuid_.data(), &properties.uuid, sizeof(uuid_));
  compute_capability_ = {properties.major, properties.minor};
  multiprocessors_ = properties.multiProcessorCount;
  total_memory_ = properties.totalGlobalMem;
}

Gpu::~Gpu() {
  libraries_.clear();
  if (owns_stream_) cudaStreamDestroy(stream_);
}

void Gpu::make_current() const {
  AGOQ_CUDA_CHECK(cudaSetDevice(ordinal_));
}

void Gpu::watch(std::weak_ptr<Watch> watch) {
  std::erase_if(watches_, [](const auto& known) { return known.expired(); });
  watches_.push_back(std::move(watch));
}

// The last first: windows, whose kernels NCCL's aborts would wait for, are opened behind NCCL's groups.
void Gpu::abandon() const noexcept {
  for (auto weak = watches_.rbegin(); weak != watches_.rend(); ++weak)
    if (const auto watch = weak->lock()) watch->abandon();
}

// What one watch finds concerns all: the GPU must not be left waiting for any of them, or freeing memory would hang.
template <class Reached>
void Gpu::wait_until(const Reached& reached) const {
  Polling polling;
  auto next_check = Polling::Duration::zero();
  while (!reached()) {
    if (polling.elapsed() >= next_check) {
      next_check = polling.elapsed() + kBetweenChecks;
      try {
        for (const auto& weak : watches_)
          if (const auto watch = weak.lock()) watch->check();
      } catch (...) {
        abandon();
        throw;
      }
    }
    polling.pause();
  }
}

void Gpu::wait_for_stream(CUstream_st* stream) const {
  if (watches_.empty()) return AGOQ_CUDA_CHECK(cudaStreamSynchronize(stream));
  wait_until([&] { return cuda::done(cudaStreamQuery(stream), "cudaStreamQuery"); });
}

void Gpu::wait_for(CUevent_st* event) const {
  if (watches_.empty()) return AGOQ_CUDA_CHECK(cudaEventSynchronize(event));
  wait_until([&] { return cuda::done(cudaEventQuery(event), "cudaEventQuery"); });
}

size_t Gpu::free_memory() const {
  size_t free = 0, total = 0;
  AGOQ_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

void* Gpu::reserve(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is not sticky
    fail("the GPU {} cannot give {} bytes: {} of its {} are free; `agoq plan` ranks what makes a run smaller", name_,
         bytes, free_memory(), total_memory_);
  }
  AGOQ_CUDA_CHECK(status);
  AGOQ_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream_));
  return memory;
}

void Gpu::release(void* memory) noexcept {
  cudaFree(memory);
}

void Gpu::require_own(const void* memory) const {
  cudaPointerAttributes attributes{};
  AGOQ_CUDA_CHECK(cudaPointerGetAttributes(&attributes, memory));
  const bool device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  require(device && attributes.device == ordinal_, "the memory at {} was given to GPU {}, but it is {}", memory,
          ordinal_, device ? fmt::format("that of GPU {}", attributes.device) : "not a GPU's");
}

}  // namespace agoq
