// How large the channels of a model's activations are: of the residual stream, of what norms make of it, and the units
// of SwiGLU.
#pragma once

#include <vector>

#include "parallel/training_state.h"

namespace agoq::bench {

using ChannelSizes = std::vector<double>;  // root mean square of each channel over the tokens

struct LayerChannels {
  ChannelSizes x1, n1, x2, n2;  // [H]
  ChannelSizes h;               // [F]
};

struct ModelChannels {
  std::vector<LayerChannels> layers;
  ChannelSizes final_x;  // [H]: what the final norm reads
};

// Of a micro-batch, in fp32. The norms of the model's layers are in front (no OLMo 2).
ModelChannels channels_of(parallel::TrainingState& state, const parallel::MicroBatch& batch);

double root_mean_square(const ChannelSizes& sizes);
// The `count` largest, the largest first.
std::vector<int64_t> largest(const ChannelSizes& sizes, int64_t count);
// The root mean square of all but some.
double size_without(const ChannelSizes& sizes, const std::vector<int64_t>& excepted);
// How many times larger than all others the smallest of these channels is.
double times_larger(const ChannelSizes& sizes, const std::vector<int64_t>& channels);

}  // namespace agoq::bench
