// Outliers as large language models have them, in a model that has none.
#pragma once

#include <vector>

#include "gradient_error/channels.h"

namespace agoq::bench {

inline constexpr int64_t kOutlierChannels = 3;

// Factors of a parameter: element [r, c] is multiplied by rows[r] · cols[c]; an empty list is of ones.
struct Rescaling {
  model::ParamId id;
  std::vector<float> rows, cols;
};

// These two leave the function of the model as it is.
//
// One unit of SwiGLU in each layer, the largest, becomes `factor` times as large as the others are: its row of the up
// projection grows, its column of the down projection shrinks.
std::vector<Rescaling> unit_outliers(const parallel::RunSpec& run_spec, const ModelChannels& channels, double factor);
// Three channels of what each norm makes, the largest of the residual stream, become `factor` times as large as the
// others are: elements of the norm's weight grow, columns of qkv and of gate and up shrink.
std::vector<Rescaling> norm_outliers(const parallel::RunSpec& run_spec, const ModelChannels& channels, double factor);

// Three channels of the residual stream, the largest, become `factor` times as large as the others in front of every
// norm: columns of the embedding and rows of out and down grow. Elements of the norms' weights shrink; all of them grow
// as well, because the three channels alone now decide what a norm divides by. That divisor is right for the mean over
// the tokens but not for each token, so the function changes and the model is to be trained further.
std::vector<Rescaling> residual_outliers(const parallel::RunSpec& run_spec, const ModelChannels& channels,
                                         double factor);

void rescale(parallel::TrainingState& state, const std::vector<Rescaling>& all);
// A gradient by the rescaled weights becomes that by the weights as they were.
void rescale(const Rescaling& by, std::vector<float>& values);

}  // namespace agoq::bench
