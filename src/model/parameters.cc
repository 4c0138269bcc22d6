#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <span>

namespace agoq::model {
namespace {

ops::Weight allocate_weight(Arena& arena, const ParamRow& row, MasterForm form, DType compute) {
  const Shape shape = row.one_dimensional() ? Shape{row.cols} : Shape{row.rows, row.cols};
  ops::Weight weight;
  if (form == MasterForm::Split) {
    weight.value = arena.allocate("weights", DType::BF16, shape);
    weight.correction = arena.allocate("corrections", DType::I16, shape);
  } else if (compute == DType::F32) {
    weight.value = arena.allocate("weights", DType::F32, shape);
  } else {
    weight.value = arena.allocate("weights", DType::BF16, shape);
    weight.master = arena.allocate("fp32 master", DType::F32, shape);
  }
  return weight;
}

float standard_deviation(const ModelConfig& config, Init init) {
  return init == Init::ResidualNormal ? config.init_std / std::sqrt(2.0f * static_cast<float>(config.layers))
                                      : config.init_std;
}

constexpr int64_t kFloatsAtOnce = 1 << 24;  // of random numbers: 64 MiB

// values[i] depends only on (seed, tensor, row, i).
void fill_normal(const RandomKey& key, int64_t row, float deviation, std::span<float> values) {
  const uint64_t groups_per_row = (values.size() + 3) / 4;
  for (size_t i = 0; i < values.size(); i += 4) {
    const Philox4 words = key.draw(static_cast<uint64_t>(row) * groups_per_row + i / 4);
    const auto first = normal_pair(words[0], words[1]), second = normal_pair(words[2], words[3]);
    const std::array<float, 4> four = {first[0], first[1], second[0], second[1]};
    for (size_t j = 0; j < 4 && i + j < values.size(); ++j) values[i + j] = four[j] * deviation;
  }
}

// Rows [begin, end) of a parameter as it is in the beginning.
std::vector<float> initial_rows(const ModelConfig& config, const ParamRow& row, const RandomKey& key, int64_t begin,
                                int64_t end) {
  const auto cols = static_cast<size_t>(row.cols);
  std::vector<float> values(static_cast<size_t>(end - begin) * cols, row.init == Init::Ones ? 1.0f : 0.0f);
  if (row.init == Init::Ones || row.init == Init::Zeros) return values;
  const float deviation = standard_deviation(config, row.init);
#pragma omp parallel for
  for (int64_t r = begin; r < end; ++r)
    fill_normal(key, r, deviation, std::span(values).subspan(static_cast<size_t>(r - begin) * cols, cols));
  return values;
}

}  // namespace

Parameters::Parameters(Arena& arena, const ModelConfig& config, const LayerSpec& spec, MasterForm form, DType compute)
    : config_(config), spec_(spec), ids_(all_params(config, spec)) {
  weights_.resize(tensor_ids(config));
  for (const ParamId& id : ids_) weights_[id.tensor()] = allocate_weight(arena, spec[id.param], form, compute);
}

const ops::Weight& Parameters::at(const ParamId& id) const {
  const ops::Weight& weight = weights_[id.tensor()];
  require(static_cast<bool>(weight.value), "this model has no parameter {}", logical_name(spec_, id));
  return weight;
}

ParamId Parameters::head_id() const {
  return {-1, config_.tied_embeddings ? Param::Embedding : Param::Head};
}

Tensor Parameters::acquire(const Context& ctx, const ParamId& id) const {
  if (!spec_[id.param].present()) return {};
  return ops::in_compute_type(ctx, at(id));
}

LayerWeights Parameters::acquire(const Context& ctx, int64_t layer) const {
  LayerWeights weights;
  for (const ParamRow& row : spec_.params)
    if (in_layer(row.param) && row.present()) weights[row.param] = acquire(ctx, {layer, row.param});
  return weights;
}

void Parameters::initialize(const Context& ctx, uint64_t seed) {
  for (const ParamId& id : ids_) {
    const ParamRow& row = spec_[id.param];
    const RandomKey key{seed, Purpose::Initialization, 0, 0, id.tensor()};
    const int64_t step = std::max<int64_t>(kFloatsAtOnce / row.cols, 1);
    for (int64_t begin = 0; begin < row.rows; begin += step) {
      const int64_t end = std::min(begin + step, row.rows);
      const std::vector<float> values = initial_rows(config_, row, key, begin, end);
      ops::store_fp32(ctx, row.one_dimensional() ? at(id) : at(id).row_range(begin, end), values.data());
    }
  }
}

}  // namespace agoq::model
