#include "comm/gpu_link.h"

#include <map>

#include "comm/limits.h"

namespace agoq::comm {
namespace {

// "ranks 0 and 2 share a GPU", or nothing.
std::string shared_gpu(std::span<const Gpu::Uuid> gpus) {
  std::map<Gpu::Uuid, size_t> first;
  for (size_t rank = 0; rank < gpus.size(); ++rank) {
    const auto [known, fresh] = first.emplace(gpus[rank], rank);
    if (!fresh) return fmt::format("ranks {} and {} of the group share a GPU", known->second, rank);
  }
  return "";
}

}  // namespace

std::unique_ptr<Pending> HostLink::start(std::span<const Message> sends, std::span<const Message> receives) const {
  const auto world_rank = [&](int peer) { return ranks.at(static_cast<size_t>(peer)); };
  std::vector<Send> out;
  std::vector<Receive> in;
  for (const Message& m : sends) out.push_back({world_rank(m.peer), m.data.data, m.data.bytes()});
  for (const Message& m : receives) in.push_back({world_rank(m.peer), m.data.data, m.data.bytes()});
  return transport->start(channel, out, in);
}

std::string why_staged(const GroupOptions& options, std::span<const Gpu::Uuid> gpus) {
  if (options.gpu_transport == GpuTransport::Staged) return "asked for";
  std::string why = kNcclBuild ? shared_gpu(gpus) : "this build has no NCCL";
  require(options.gpu_transport != GpuTransport::Nccl || why.empty(),
          "--gpu-transport nccl: {}; give each rank a GPU of its own, or take auto", why);
  return why;
}

void require_direct_fits(int ranks) {
  require(
      ranks <= kMostDirectRanks,
      "--gpu-transport direct joins the GPUs of one machine, {} at most, and a group that exchanges gradients has {} "
      "ranks; take --gpu-transport auto",
      kMostDirectRanks, ranks);
}

}  // namespace agoq::comm
