// How the tensors of one group get from GPU to GPU: by NCCL where every rank has a GPU of its own, otherwise through
// host memory.
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/transport/transport.h"
#include "device/context.h"

namespace agoq::comm {

#if defined(AGOQ_NCCL)
inline constexpr bool kNcclBuild = true;
#else
inline constexpr bool kNcclBuild = false;
#endif

// A tensor that goes to, or comes from, a rank of the group.
struct Message {
  int peer = 0;  // rank in the group, not this one
  Tensor data;   // on the context's device
};

// Auto: NCCL where every rank has a GPU of its own, through host memory elsewhere. Nccl is an error where it cannot be.
// Direct: as Auto, but what can be exchanged in place is, in each other's memory (comm/window.h); an error where that
// cannot be reached.
enum class GpuTransport : uint8_t { Auto, Nccl, Staged, Direct };

struct GroupOptions {
  GpuTransport gpu_transport = GpuTransport::Auto;
  std::chrono::seconds timeout{600};  // how long an exchange between GPUs may take to end, while the host waits
};

// The ranks of a group and the way between them in host memory.
struct HostLink {
  Transport* transport = nullptr;
  std::vector<int> ranks = {0};  // of the world, in the order of the group
  uint32_t channel = 0;

  // Messages in host memory.
  std::unique_ptr<Pending> start(std::span<const Message> sends, std::span<const Message> receives) const;
};

// Works in the order of the context's stream, as ProcessGroup::start() says.
class GpuLink {
 public:
  virtual ~GpuLink() = default;
  virtual std::unique_ptr<Pending> start(const Context& ctx, std::span<const Message> sends,
                                         std::span<const Message> receives) = 0;
  // ProcessGroup::all_gather() as one call of a library; false, and nothing done, if there is none.
  virtual bool all_gather(const Context& ctx, const Tensor& mine, const Tensor& all) = 0;
  virtual std::string description() const = 0;  // for the log
};

// Why a group whose ranks, in order, use these GPUs goes through host memory; empty if NCCL carries it. Error if the
// options forbid that.
std::string why_staged(const GroupOptions& options, std::span<const Gpu::Uuid> gpus);

// Error if a group has more ranks than --gpu-transport direct joins.
void require_direct_fits(int ranks);

}  // namespace agoq::comm
