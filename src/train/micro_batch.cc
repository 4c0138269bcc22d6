#include "train/micro_batch.h"

#include <algorithm>
#include <numeric>

namespace agoq::train {

BatchSpec batch_spec(const TrainConfig& c, const model::ModelConfig& model) {
  BatchSpec spec;
  spec.micro_batch_size = c.micro_batch_size;
  spec.sequence_length = c.seq_length;
  spec.vocab_size = model.vocab_size;
  spec.reset_position_ids = c.reset_position_ids;
  spec.reset_attention_mask = c.reset_attention_mask;
  spec.eod_mask_loss = c.eod_mask_loss;
  spec.eod_token = static_cast<int32_t>(c.eod_token);
  return spec;
}

DataConfig data_config(const TrainConfig& c) {
  DataConfig data;
  data.data_path = c.data_path;
  data.valid_data_path = c.valid_data_path;
  data.valid_fraction = c.valid_fraction;
  require(c.data_dtype == "uint16" || c.data_dtype == "int32", "--data-dtype {}: use uint16 or int32", c.data_dtype);
  data.files.data_dtype = c.data_dtype == "uint16" ? DType::U16 : DType::I32;
  data.files.document_separator = c.document_separator;
  data.seed = c.seed;
  return data;
}

parallel::MicroBatch view(Batch& batch) {
  const auto tensor = [](auto& values) { return host_tensor(values.data(), {static_cast<int64_t>(values.size())}); };
  return {tensor(batch.tokens), tensor(batch.targets), tensor(batch.loss_weights), tensor(batch.positions),
          tensor(batch.document_start)};
}

double held_out_loss(parallel::TrainingState& state, const Dataset& dataset, int64_t micro_batches, int64_t samples,
                     double* tokens) {
  const int64_t per_batch = dataset.spec().micro_batch_size;
  const comm::ProcessGroup& data_ranks = state.groups().data;
  double own_weight = 0;
  Batch batch(dataset.spec());
  for (int64_t i = data_ranks.rank(); i < micro_batches; i += data_ranks.size()) {
    const int64_t count = std::min(per_batch, samples - i * per_batch);
    for (int64_t slot = 0; slot < per_batch; ++slot)
      dataset.fill(static_cast<uint64_t>(i * per_batch + std::min(slot, count - 1)), slot, batch);
    // A last batch that is not full repeats a sample, which then must not count twice.
    std::fill(batch.loss_weights.begin() + count * dataset.spec().sequence_length, batch.loss_weights.end(), 0.0f);
    state.evaluate(view(batch));
    own_weight += batch.target_weight();
  }
  const std::vector<double> weights = data_ranks.values(own_weight);
  const double weight = std::accumulate(weights.begin(), weights.end(), 0.0);
  require(weight > 0, "the held-out data has no target tokens");
  if (tokens) *tokens = weight;
  return state.take_loss() / weight;
}

}  // namespace agoq::train
