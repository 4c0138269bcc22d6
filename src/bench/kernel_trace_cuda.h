// What runs on the GPUs of this process, recorded by CUPTI. That is loaded when it is asked for, so that a machine
// without it runs everything else. Only a build with the CUDA backend defines it.
#pragma once

#include <vector>

#include "bench/step_profile.h"

namespace agoq::bench {

class KernelTrace {
 public:
  // Begins to record. Error if CUPTI is not here or cannot; one trace at a time.
  KernelTrace();
  ~KernelTrace();
  KernelTrace(const KernelTrace&) = delete;
  KernelTrace& operator=(const KernelTrace&) = delete;

  // What has run so far does not count.
  void forget();
  // Ends, and returns what has run since it began; the work must have been waited for. Error if CUPTI has lost records.
  std::vector<KernelRun> take();

 private:
  // Unused in a build without CUPTI.
  [[maybe_unused]] bool recording_ = false;
  [[maybe_unused]] uint64_t since_ = 0;  // what began earlier does not count
};

}  // namespace agoq::bench
