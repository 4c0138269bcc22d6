// Groups of GPUs without NCCL: device -> pinned host memory -> transport -> pinned host memory -> device.
#pragma once

#include "comm/gpu_link.h"

namespace agoq::comm {

// `why` is told in its description.
std::shared_ptr<GpuLink> open_staged(HostLink host, std::string why);

}  // namespace agoq::comm
