#include "train/data/run_data.h"

#include <algorithm>
#include <optional>

#include "train/data/micro_batch.h"

namespace agoq::train {
namespace {

Datasets open_checked(const TrainConfig& config, const BatchSpec& spec) {
  Datasets data = open_datasets(data_config(config), spec);
  data.train.require_targets();
  if (data.valid) data.valid->require_targets(static_cast<uint64_t>(evaluated_samples(config, *data.valid)));
  return data;
}

}  // namespace

int64_t evaluated_samples(const TrainConfig& config, const Dataset& valid) {
  return std::min(config.eval_iters * config.micro_batch_size, static_cast<int64_t>(valid.samples()));
}

Datasets open_run_data(const Coordinator& coordinator, int local_rank, const TrainConfig& config,
                       const BatchSpec& spec) {
  if (coordinator.alone()) return open_checked(config, spec);
  std::optional<Datasets> data;
  for (const bool first : {true, false})  // of its machine
    coordinator.at_length([&] {
      if (first == (local_rank == 0)) data.emplace(open_checked(config, spec));
    });
  return std::move(*data);
}

}  // namespace agoq::train
