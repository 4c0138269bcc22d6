// `agoq bench collective`: what it measures, shown and as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "train/config/config.h"

namespace agoq::cli {

struct CollectiveOptions {
  std::vector<std::string> sizes;  // of gradients, counted in fp32; empty: some that suit the device
  double seconds = 1;              // for each method at each size
};

// On all processes of a launch alike; on the leading one the result.
std::optional<nlohmann::ordered_json> bench_collective(const train::TrainConfig& config,
                                                       const CollectiveOptions& options);

}  // namespace agoq::cli
