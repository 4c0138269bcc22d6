#include "device/gpu_queues.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "base/error.h"

namespace agoq {

int gpu_queues(const char* setting) {
  const std::string_view text = setting ? setting : "";
  int count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc() || end != text.data() + text.size() || count < 1) return kDefaultGpuQueues;
  return std::min(count, kMostGpuQueues);
}

std::string why_too_few_gpu_queues(const char* setting) {
  const int queues = gpu_queues(setting);
  if (queues >= kNeededGpuQueues) return "";
  return fmt::format(
      "{}{} gives the streams of a GPU {} queue{}, and ranks whose streams share a queue can wait for each other "
      "forever: {}, or use --gpu-transport staged",
      kGpuQueuesVariable, setting ? fmt::format("={}", setting) : " is not set, which", queues, queues == 1 ? "" : "s",
      setting ? fmt::format("unset it (agoq then sets {}) or set at least {}", kMostGpuQueues, kNeededGpuQueues)
              : fmt::format("set it to {} before the process starts", kMostGpuQueues));
}

void require_gpu_queues() {
  const std::string why = why_too_few_gpu_queues(std::getenv(kGpuQueuesVariable));
  require(why.empty(), "{}", why);
}

}  // namespace agoq
