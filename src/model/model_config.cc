#include "model/model_config.h"

#include "model/layer_spec.h"

namespace agoq::model {
namespace {

// Keys that a causal token attends to, its own among them, on average over a sequence.
double mean_keys(double sequence, double window) {
  if (window <= 0 || window >= sequence) return (sequence + 1) / 2;
  return (window * (window + 1) / 2 + (sequence - window) * window) / sequence;
}

}  // namespace

int64_t ModelConfig::parameters() const {
  const LayerSpec spec(*this);
  int64_t count = 0;
  for (const ParamRow& row : spec.params) count += in_layer(row.param) ? layers * row.count() : row.count();
  return count;
}

double ModelConfig::flops_per_token(int64_t sequence_length) const {
  const LayerSpec spec(*this);
  double layer_weights = 0;
  for (const Param p : {Param::Qkv, Param::Out, Param::GateUp, Param::Down})
    layer_weights += static_cast<double>(spec[p].count());
  const double head = static_cast<double>(vocab_size) * static_cast<double>(hidden_size);
  const double depth = static_cast<double>(layers);
  return 6 * (depth * layer_weights + head) + 3 * depth * attention_flops_per_token(sequence_length);
}

double ModelConfig::attention_flops_per_token(int64_t sequence_length) const {
  const double keys = mean_keys(static_cast<double>(sequence_length), static_cast<double>(window));
  return 4 * static_cast<double>(heads.q_cols()) * keys;
}

}  // namespace agoq::model
