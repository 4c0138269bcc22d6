#include "bench/kernel_trace_cuda.h"

#include <cuda_runtime.h>

#if __has_include(<cupti.h>)
#include <cupti.h>
#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
#include <string>
#endif

#include "base/error.h"

namespace agoq::bench {

#if __has_include(<cupti.h>)
namespace {

constexpr size_t kBufferBytes = size_t{8} << 20;
constexpr size_t kRecordAlignment = 8;  // of records, and so of buffers
constexpr CUpti_ActivityKind kKinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                         CUPTI_ACTIVITY_KIND_MEMSET};

// --- the library

void* load_cupti() {
  const std::string name = fmt::format("libcupti.so.{}", CUDART_VERSION / 1000);
  for (const char* folder : {"", "/usr/local/cuda/extras/CUPTI/lib64/", "/usr/local/cuda/lib64/"})
    if (void* library = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) return library;
  fail(
      "--profile on a GPU needs {}, which is not found: it comes with the CUDA toolkit (cuda-cupti); put its folder "
      "into LD_LIBRARY_PATH",
      name);
}

template <class Function>
Function* function_of(void* library, const char* name) {
  auto* function = reinterpret_cast<Function*>(dlsym(library, name));
  require(function != nullptr, "CUPTI has no {}; it is of another version than this build", name);
  return function;
}

struct Cupti {
  explicit Cupti(void* library)
      : register_callbacks(
            function_of<decltype(cuptiActivityRegisterCallbacks)>(library, "cuptiActivityRegisterCallbacks")),
        enable(function_of<decltype(cuptiActivityEnable)>(library, "cuptiActivityEnable")),
        disable(function_of<decltype(cuptiActivityDisable)>(library, "cuptiActivityDisable")),
        flush(function_of<decltype(cuptiActivityFlushAll)>(library, "cuptiActivityFlushAll")),
        next_record(function_of<decltype(cuptiActivityGetNextRecord)>(library, "cuptiActivityGetNextRecord")),
        dropped_records(
            function_of<decltype(cuptiActivityGetNumDroppedRecords)>(library, "cuptiActivityGetNumDroppedRecords")),
        timestamp(function_of<decltype(cuptiGetTimestamp)>(library, "cuptiGetTimestamp")),
        result_string(function_of<decltype(cuptiGetResultString)>(library, "cuptiGetResultString")) {}

  decltype(cuptiActivityRegisterCallbacks)* register_callbacks;
  decltype(cuptiActivityEnable)* enable;
  decltype(cuptiActivityDisable)* disable;
  decltype(cuptiActivityFlushAll)* flush;
  decltype(cuptiActivityGetNextRecord)* next_record;
  decltype(cuptiActivityGetNumDroppedRecords)* dropped_records;
  decltype(cuptiGetTimestamp)* timestamp;
  decltype(cuptiGetResultString)* result_string;
};

const Cupti& cupti() {
  static const Cupti library(load_cupti());
  return library;
}

void check(CUptiResult result, const char* what) {
  if (result == CUPTI_SUCCESS) return;
  const char* text = nullptr;
  cupti().result_string(result, &text);
  fail("{}: {}; another profiler may be attached", what, text ? text : "unknown error");
}

// --- what it records: its callbacks, which threads of its own may call, have no argument for an object of ours

struct Records {
  std::mutex mutex;
  std::vector<KernelRun> runs;
  size_t dropped = 0;
};

Records& records() {
  static Records all;
  return all;
}

const char* name_of_copy(uint8_t kind) {
  switch (kind) {
    case CUPTI_ACTIVITY_MEMCPY_KIND_HTOD:
      return "copy, host to device";
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOH:
      return "copy, device to host";
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOD:
      return "copy, device to device";
    default:
      return "copy";
  }
}

// Newer records begin as these older ones do.
void keep(const CUpti_Activity& record, std::vector<KernelRun>& runs) {
  if (record.kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
    const auto& kernel = reinterpret_cast<const CUpti_ActivityKernel9&>(record);
    runs.push_back({kernel.name ? kernel.name : "unnamed", kernel.start, kernel.end});
  } else if (record.kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
    const auto& copy = reinterpret_cast<const CUpti_ActivityMemcpy5&>(record);
    runs.push_back({name_of_copy(copy.copyKind), copy.start, copy.end});
  } else if (record.kind == CUPTI_ACTIVITY_KIND_MEMSET) {
    const auto& set = reinterpret_cast<const CUpti_ActivityMemset4&>(record);
    runs.push_back({"memset", set.start, set.end});
  }
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* bytes, size_t* most_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(kRecordAlignment, kBufferBytes));
  *bytes = *buffer ? kBufferBytes : 0;
  *most_records = 0;  // as many as fit
}

void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t* buffer, size_t, size_t bytes) {
  const std::lock_guard lock(records().mutex);
  CUpti_Activity* record = nullptr;
  while (cupti().next_record(buffer, bytes, &record) == CUPTI_SUCCESS) keep(*record, records().runs);
  size_t dropped = 0;
  if (cupti().dropped_records(context, stream, &dropped) == CUPTI_SUCCESS) records().dropped += dropped;
  std::free(buffer);
}

void stop() {
  for (const CUpti_ActivityKind kind : kKinds) cupti().disable(kind);
}

}  // namespace

KernelTrace::KernelTrace() {
  check(cupti().register_callbacks(give_buffer, take_buffer), "cuptiActivityRegisterCallbacks");
  {
    const std::lock_guard lock(records().mutex);
    records().runs.clear();
    records().dropped = 0;
  }
  try {
    for (const CUpti_ActivityKind kind : kKinds) check(cupti().enable(kind), "cuptiActivityEnable");
  } catch (...) {
    stop();
    throw;
  }
  recording_ = true;
}

KernelTrace::~KernelTrace() {
  if (recording_) stop();
}

// CUPTI stops the GPU for milliseconds when it begins a new buffer. So the one in use is kept, and take() leaves out
// what is older.
void KernelTrace::forget() {
  check(cupti().timestamp(&since_), "cuptiGetTimestamp");
}

std::vector<KernelRun> KernelTrace::take() {
  check(cupti().flush(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "cuptiActivityFlushAll");
  for (const CUpti_ActivityKind kind : kKinds) check(cupti().disable(kind), "cuptiActivityDisable");
  recording_ = false;
  const std::lock_guard lock(records().mutex);
  require(records().dropped == 0, "CUPTI has lost {} records of kernels; profile fewer layers", records().dropped);
  std::erase_if(records().runs, [&](const KernelRun& run) { return run.begin < since_; });
  return std::move(records().runs);
}

#else

KernelTrace::KernelTrace() {
  fail(
      "--profile on a GPU: this build was made without the headers of CUPTI, which come with the CUDA toolkit "
      "(cuda-cupti-dev); build it again where they are");
}
KernelTrace::~KernelTrace() = default;
void KernelTrace::forget() {}
std::vector<KernelRun> KernelTrace::take() {
  return {};
}

#endif

}  // namespace agoq::bench
