#include "train/run_plan.h"

namespace agoq::train {

double RunPlan::bytes_per_parameter(const plan::Layout& of) const {
  return static_cast<double>(of.model_state()) / static_cast<double>(parameters);
}

double RunPlan::saved_bytes_per_token_layer(const plan::Layout& of) const {
  const int64_t tokens = config.micro_batch_size * config.seq_length;
  return static_cast<double>(of.saved()) / static_cast<double>(tokens * kept_layers);
}

}  // namespace agoq::train
