#include "device/range.h"

// Part of the CUDA toolkit, but a package of its own where that comes in packages.
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>

namespace agoq::cuda {
namespace {

// Ours, so that a profiler can show them apart from those of libraries.
nvtxDomainHandle_t domain() {
  static const nvtxDomainHandle_t handle = nvtxDomainCreateA("agoq");
  return handle;
}

}  // namespace

void push_range(const char* name) {
  nvtxEventAttributes_t event{};
  event.version = NVTX_VERSION;
  event.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  event.messageType = NVTX_MESSAGE_TYPE_ASCII;
  event.message.ascii = name;
  nvtxDomainRangePushEx(domain(), &event);
}

void pop_range() {
  nvtxDomainRangePop(domain());
}

}  // namespace agoq::cuda

#else

namespace agoq::cuda {

void push_range(const char*) {}
void pop_range() {}

}  // namespace agoq::cuda

#endif
