// Groups whose ranks have a GPU each: one NCCL communicator and one stream per group, so that no group waits for
// another. What goes between two GPUs of a machine takes NVLink or PCIe, between machines InfiniBand or Ethernet.
#pragma once

#include <array>

#include "comm/gpu_link.h"
#include "device/library_version.h"

namespace agoq::comm {

// What the ranks of one communicator find each other by.
using NcclId = std::array<char, 128>;
NcclId make_nccl_id();

LibraryVersion nccl_version();

struct NcclGroup {
  NcclId id{};  // made by one rank
  int size = 1, rank = 0;
  std::chrono::seconds timeout{600};
  Transport* transport = nullptr;  // knows whether a rank is gone; may be null
};

// On all ranks at once. PeerError if one does not come in time, or is gone later: whatever waited for it is given up,
// and so is the group.
std::shared_ptr<GpuLink> open_nccl(Gpu& gpu, const NcclGroup& group);

}  // namespace agoq::comm
