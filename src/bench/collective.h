// Gradients summed over ranks by several methods, in turn: their time and their error.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/sum_methods.h"
#include "device/memory.h"

namespace agoq::bench {

struct SumTime {
  SumMethod::Name name;
  double median = 0, least = 0;  // seconds, of the slowest rank
  int64_t samples = 0;
  double sent_bytes = 0;  // that a rank must send, in the wire's format
  double error = 0;       // of the sum: L2, relative to the same sum in fp64
};

struct SumTimes {
  int64_t bytes = 0;    // of the gradient in fp32
  std::string skipped;  // why there are no times
  std::vector<SumTime> times;

  // What is sped up: the same form (for an exchange: the reduce form) without 8-bit codes, in this format.
  const SumTime* rival_of(const SumTime& time, codec::Codec wire) const;
};

class CollectiveBench {
 public:
  struct SweepOptions {
    comm::GroupOptions links;  // as of `group`
    double seconds = 1;        // that each method is measured for, at each size
    uint64_t seed = 1;
  };
  // On all ranks of the group at once. Memory and group outlive it.
  CollectiveBench(DeviceMemory& memory, const comm::ProcessGroup& group, const SweepOptions& options);
  ~CollectiveBench();

  // Sums a gradient of about so many bytes in fp32.
  SumTimes measure(int64_t bytes);
  bool has_nccl() const { return nccl_ != nullptr; }  // its own sums run, too

 private:
  class TestGradients;
  class Round;

  DeviceMemory& memory_;
  const comm::ProcessGroup& group_;
  SweepOptions options_;
  std::unique_ptr<const TestGradients> inputs_;
  std::unique_ptr<const NcclSums> nccl_;
  size_t budget_ = 0;  // bytes that a rank may take
};

}  // namespace agoq::bench
