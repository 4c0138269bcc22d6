#include "train/held_out.h"

#include <algorithm>
#include <numeric>

#include "train/data/micro_batch.h"

namespace agoq::train {
namespace {

// body(batch) for each micro-batch of the first `samples` samples that one data rank evaluates. All ranks have as many:
// with ZeRO-3 each takes part in every forward pass of the others.
template <class Body>
void for_held_out(const Dataset& dataset, int64_t samples, int rank, int ranks, Body&& body) {
  const int64_t per_batch = dataset.spec().micro_batch_size;
  Batch batch(dataset.spec());
  for (int64_t round = 0; round < samples; round += ranks * per_batch) {
    const int64_t first = round + rank * per_batch, count = std::clamp<int64_t>(samples - first, 0, per_batch);
    for (int64_t slot = 0; slot < per_batch; ++slot)
      dataset.fill(static_cast<uint64_t>(std::min(first + slot, samples - 1)), slot, batch);
    // A batch that is not full repeats a sample, which then must not count twice.
    std::fill(batch.loss_weights.begin() + count * dataset.spec().sequence_length, batch.loss_weights.end(), 0.0f);
    body(batch);
  }
}

double held_out_targets(const Dataset& dataset, int64_t samples, int rank, int ranks) {
  double weight = 0;
  for_held_out(dataset, samples, rank, ranks, [&](const Batch& batch) { weight += batch.target_weight(); });
  return weight;
}

}  // namespace

double held_out_loss(parallel::TrainingState& state, const Dataset& dataset, int64_t samples, double* tokens) {
  const comm::ProcessGroup& data_ranks = state.groups().data();
  double own_weight = 0;
  for_held_out(dataset, samples, data_ranks.rank(), data_ranks.size(), [&](Batch& batch) {
    state.evaluate(view(batch));
    own_weight += batch.target_weight();
  });
  const std::vector<double> weights = data_ranks.values(own_weight);
  const double weight = std::accumulate(weights.begin(), weights.end(), 0.0);
  require(weight > 0, "the held-out data has no target tokens");
  if (tokens) *tokens = weight;
  return state.take_loss() / weight;
}

HeldOut measure_held_out(const Coordinator& coordinator, parallel::TrainingState& state, const Dataset& dataset,
                         int64_t samples) {
  const comm::ProcessGroup& data_ranks = state.groups().data();
  double own = 0;
  const std::string problem =
      coordinator.problem([&] { own = held_out_targets(dataset, samples, data_ranks.rank(), data_ranks.size()); });
  if (!problem.empty()) return {0, problem};
  const std::vector<double> of_ranks = data_ranks.values(own);
  if (std::accumulate(of_ranks.begin(), of_ranks.end(), 0.0) == 0) return {0, "no held-out token counts for the loss"};
  try {
    return {held_out_loss(state, dataset, samples), ""};
  } catch (const std::exception& error) {
    if (!coordinator.alone()) throw;  // the others are waiting for this rank
    state.take_loss();                // a part of it
    return {0, error.what()};
  }
}

}  // namespace agoq::train
