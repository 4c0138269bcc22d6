// NCCL's own sums over ranks, to be compared with.
#pragma once

#include <memory>

#include "comm/process_group.h"

namespace agoq::bench {

// On a communicator of its own; in the order of the context's stream.
class NcclSums {
 public:
  virtual ~NcclSums() = default;
  // partial_sums [ranks · n] (fp32 or bf16) -> sum [n] of part `rank` of all ranks' partial sums.
  virtual void reduce_scatter(const Context& ctx, const Tensor& partial_sums, const Tensor& sum) const = 0;
  // x := Σ over ranks of x.
  virtual void all_reduce(const Context& ctx, const Tensor& x) const = 0;
};

// On all ranks of a group at once, each with a GPU of its own. Must go before its GPU.
std::unique_ptr<NcclSums> open_nccl_sums(Gpu& gpu, const comm::ProcessGroup& group);

}  // namespace agoq::bench
