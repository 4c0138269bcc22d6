// The queues of a GPU, over which CUDA spreads the streams of a process.
//
// Streams that share a queue can wait for each other. Then one that waits for another rank holds up work that this rank
// waits for, and both hang. So every stream of ranks that wait on their GPUs needs a queue of its own. How many there
// are the driver reads from the environment when it starts; only the program sets that (cli/environment.h).
#pragma once

#include <string>

namespace agoq {

inline constexpr const char* kGpuQueuesVariable = "CUDA_DEVICE_MAX_CONNECTIONS";
inline constexpr int kMostGpuQueues = 32;    // that CUDA gives
inline constexpr int kDefaultGpuQueues = 8;  // where the variable is not set
inline constexpr int kNeededGpuQueues = 20;  // one for each group of ranks (parallel/groups.h), and some for windows

// How many a value of the variable asks for; null: it is not set.
int gpu_queues(const char* setting);
// Why ranks with that value would not be safe, in one line with its remedy; empty if they are.
std::string why_too_few_gpu_queues(const char* setting);
// Error if ranks of this process's environment are not.
void require_gpu_queues();

}  // namespace agoq
