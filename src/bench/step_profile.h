// Where the time of a training step goes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "device/profile.h"

namespace agoq::bench {

// A kernel or copy that has run on a GPU, in nanoseconds of one clock.
struct KernelRun {
  std::string name;  // as CUDA has it, mangled
  uint64_t begin = 0, end = 0;
};

struct StepProfile {
  // Kernels of one name, or work of one kind.
  struct Entry {
    std::string name;
    double seconds = 0;      // of a step
    double runs = 0;         // in a step; 0 where they are not counted
    double idle_before = 0;  // seconds of a step in which nothing ran and one of these ran next
  };
  std::vector<Entry> entries;  // the longest first
  double step_seconds = 0;     // of a step, while it was profiled
  double busy_seconds = 0;     // of a step, in which at least one of them ran: entries can run at once
};

std::string_view name_of(Work kind);  // "GEMM", ...

// "agoq::ops::cuda::add_runs" of a mangled name: without types, arguments and anonymous namespaces. Names that are not
// C++'s stay as they are.
std::string short_kernel_name(const std::string& name);

// Of `steps` steps that took `seconds` together: by short names of a GPU's kernels, by kinds of a CPU's work.
StepProfile profile_of(std::span<const KernelRun> runs, double seconds, int64_t steps);
StepProfile profile_of(const Profile& profile, double seconds, int64_t steps);

// For a terminal: the first `most` entries, what the others add up to, and what none of them explains.
std::string table_of(const StepProfile& profile, size_t most);

}  // namespace agoq::bench
