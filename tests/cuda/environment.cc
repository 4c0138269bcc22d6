// What the program settles at its start (cli/environment.h), before the driver and NCCL read it.
#include <cstdlib>

#include "device/gpu_queues.h"

namespace agoq {
namespace {

[[maybe_unused]] const int kQueues = setenv(kGpuQueuesVariable, "32", /*overwrite=*/1);
[[maybe_unused]] const int kNoMulticast = setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);

}  // namespace
}  // namespace agoq
