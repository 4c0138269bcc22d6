#include "train/data/micro_batch.h"

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

}  // namespace agoq::train
