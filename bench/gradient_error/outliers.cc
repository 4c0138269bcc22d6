#include "gradient_error/outliers.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace agoq::bench {
namespace {

using model::Param;

std::vector<float> values_of(parallel::TrainingState& state, const model::ParamId& id) {
  const model::ParamRow& row = state.spec()[id.param];
  std::vector<float> values(static_cast<size_t>(row.count()));
  ops::load_fp32(state.context(), state.params().at(id), values.data());
  return values;
}

void store(parallel::TrainingState& state, const model::ParamId& id, const std::vector<float>& values) {
  state.params().store_rows(state.context(), id, {0, state.spec()[id.param].rows}, values.data());
}

void change(parallel::TrainingState& state, const model::ParamId& id,
            const std::function<void(std::vector<float>&)>& how) {
  require(state.spec()[id.param].present(), "outliers are made for norms with weights");
  std::vector<float> values = values_of(state, id);
  how(values);
  store(state, id, values);
}

std::vector<float> ones(int64_t count) {
  return std::vector<float>(static_cast<size_t>(count), 1.0f);
}

std::vector<float> reciprocals(std::vector<float> values) {
  for (float& value : values) value = 1 / value;
  return values;
}

// Factors that make these channels `factor` times as large as the others.
std::vector<float> enlarging(const ChannelSizes& sizes, const std::vector<int64_t>& channels, double factor) {
  std::vector<float> factors = ones(static_cast<int64_t>(sizes.size()));
  for (const int64_t i : channels)
    factors[static_cast<size_t>(i)] =
        static_cast<float>(factor * size_without(sizes, channels) / sizes[static_cast<size_t>(i)]);
  return factors;
}

// For the residual stream, in whichever layer they are smallest.
std::vector<float> enlarging_everywhere(const ModelChannels& channels, const std::vector<int64_t>& three,
                                        double factor) {
  std::vector<float> most = enlarging(channels.final_x, three, factor);
  const auto raise = [&](const ChannelSizes& x) {
    const std::vector<float> here = enlarging(x, three, factor);
    for (size_t i = 0; i < most.size(); ++i) most[i] = std::max(most[i], here[i]);
  };
  for (const LayerChannels& layer : channels.layers) raise(layer.x1), raise(layer.x2);
  return most;
}

// Factors of a norm's weight if channels of its input x are multiplied by `larger`: what leaves the norm is as large as
// before.
std::vector<float> compensating(const ChannelSizes& x, const std::vector<float>& larger) {
  ChannelSizes rescaled = x;
  for (size_t i = 0; i < x.size(); ++i) rescaled[i] *= larger[i];
  std::vector<float> factors = reciprocals(larger);
  for (float& factor : factors) factor *= static_cast<float>(root_mean_square(rescaled) / root_mean_square(x));
  return factors;
}

}  // namespace

std::vector<Rescaling> unit_outliers(const parallel::RunSpec& run_spec, const ModelChannels& channels, double factor) {
  std::vector<Rescaling> all;
  const int64_t ffn = run_spec.model.ffn_size;
  for (int64_t layer = 0; layer < run_spec.model.layers; ++layer) {
    const ChannelSizes& h = channels.layers[static_cast<size_t>(layer)].h;
    const std::vector<float> up = enlarging(h, largest(h, 1), factor);
    std::vector<float> gate_up = ones(ffn);
    gate_up.insert(gate_up.end(), up.begin(), up.end());
    all.push_back({{layer, Param::GateUp}, gate_up, {}});
    all.push_back({{layer, Param::Down}, {}, reciprocals(up)});
  }
  return all;
}

std::vector<Rescaling> norm_outliers(const parallel::RunSpec& run_spec, const ModelChannels& channels, double factor) {
  std::vector<Rescaling> all;
  const std::vector<int64_t> three = largest(channels.final_x, kOutlierChannels);
  for (int64_t layer = 0; layer < run_spec.model.layers; ++layer) {
    const LayerChannels& of = channels.layers[static_cast<size_t>(layer)];
    const std::vector<float> n1 = enlarging(of.n1, three, factor), n2 = enlarging(of.n2, three, factor);
    all.push_back({{layer, Param::AttentionNorm}, {}, n1});
    all.push_back({{layer, Param::Qkv}, {}, reciprocals(n1)});
    all.push_back({{layer, Param::MlpNorm}, {}, n2});
    all.push_back({{layer, Param::GateUp}, {}, reciprocals(n2)});
  }
  return all;
}

void rescale(parallel::TrainingState& state, const std::vector<Rescaling>& all) {
  for (const Rescaling& one : all) change(state, one.id, [&](std::vector<float>& values) { rescale(one, values); });
}

void rescale(const Rescaling& by, std::vector<float>& values) {
  const size_t cols = by.cols.empty() ? values.size() / by.rows.size() : by.cols.size();
  for (size_t i = 0; i < values.size(); ++i) {
    if (!by.rows.empty()) values[i] *= by.rows[i / cols];
    if (!by.cols.empty()) values[i] *= by.cols[i % cols];
  }
}

std::vector<Rescaling> residual_outliers(const parallel::RunSpec& run_spec, const ModelChannels& channels,
                                         double factor) {
  require(!run_spec.model.tied_embeddings, "an embedding that is the head as well cannot be rescaled alone");
  const std::vector<int64_t> three = largest(channels.final_x, kOutlierChannels);
  const std::vector<float> larger = enlarging_everywhere(channels, three, factor);
  std::vector<Rescaling> all = {{{-1, Param::Embedding}, {}, larger},
                                {{-1, Param::FinalNorm}, {}, compensating(channels.final_x, larger)}};
  for (int64_t layer = 0; layer < run_spec.model.layers; ++layer) {
    const LayerChannels& of = channels.layers[static_cast<size_t>(layer)];
    all.push_back({{layer, Param::AttentionNorm}, {}, compensating(of.x1, larger)});
    all.push_back({{layer, Param::Out}, larger, {}});
    all.push_back({{layer, Param::MlpNorm}, {}, compensating(of.x2, larger)});
    all.push_back({{layer, Param::Down}, larger, {}});
  }
  return all;
}

}  // namespace agoq::bench
