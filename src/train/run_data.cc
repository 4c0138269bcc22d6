#include "train/run_data.h"

#include <omp.h>

#include <algorithm>
#include <future>

#include "train/micro_batch.h"

namespace agoq::train {
namespace {

// Longer than it takes to ask, shorter than any --distributed-timeout-minutes.
constexpr std::chrono::milliseconds kStillThere{500};

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

Datasets open_run_data(const Crew& crew, int local_rank, const TrainConfig& config, const BatchSpec& spec) {
  if (crew.alone()) return open_checked(config, spec);
  // Reading terabytes takes longer than ranks wait for each other, so those that read say that they still do.
  std::future<Datasets> reading;
  if (local_rank == 0)
    reading = std::async(std::launch::async, [&, threads = omp_get_max_threads()] {
      omp_set_num_threads(threads);  // a setting of each thread
      return open_checked(config, spec);
    });
  const auto busy = [&] { return reading.valid() && reading.wait_for(kStillThere) != std::future_status::ready; };
  while (crew.any(busy())) {
  }
  return reading.valid() ? reading.get() : open_checked(config, spec);
}

}  // namespace agoq::train
