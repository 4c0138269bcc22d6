// Measures ops, a layer and whole steps on a device, and what the device can do at best.
#pragma once

#include <utility>
#include <vector>

#include "bench/op.h"
#include "device/memory.h"

namespace agoq::bench {

struct Measured {
  std::string name;
  OpPhase part = OpPhase::Forward;
  double seconds = 0;           // median of a run
  double bytes = 0, flops = 0;  // of a run, see Work
};

// What shares are shares of, measured on the same device in the same minutes.
struct Ceilings {
  double bytes_per_second = 0;  // of a large copy, bytes read and written
  double flops = 0;             // per second, of ceiling_ops, back to back for seconds
};

// The least seconds that an op could take.
double floor_of(const Measured& op, const Ceilings& ceilings);

struct LayerTimes {
  double forward = 0, backward = 0, optimizer = 0;  // seconds, medians
};

// Bytes that the operands of successive runs take together: more than any cache holds.
constexpr size_t kBeyondCaches = size_t{256} << 20;

class Bench {
 public:
  // A smaller working set measures caches, and is ready sooner. Error if the run multiplies in 8-bit floats and the GPU
  // does not.
  Bench(Device device, parallel::RunSpec run_spec, size_t working_set = kBeyondCaches);

  const parallel::RunSpec& run_spec() const { return run_spec_; }
  const DeviceMemory& memory() const { return memory_; }

  // `seconds`: how long to measure. Operands of successive runs are different ones, together larger than any cache.
  Measured measure(const Op& op, double seconds);
  std::vector<Measured> measure(const std::vector<Op>& ops, double seconds);
  // One decoder layer as it runs in training; its gradients accumulate.
  LayerTimes measure_layer(double seconds);
  double copy_bandwidth(double seconds);
  // Of ceiling_ops: in 8-bit floats if the run multiplies in them.
  double sustained_flops(double seconds);

 private:
  DeviceMemory memory_;
  parallel::RunSpec run_spec_;
  size_t working_set_;
};

}  // namespace agoq::bench
