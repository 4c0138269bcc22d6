#include "model/parameters.h"

#include <algorithm>
#include <cmath>

#include "device/exposed.h"

namespace agoq::model {
namespace {

Tensor allocate(Arena& arena, Owner owner, DType dtype, const ParamRow& row, int64_t rows) {
  return rows == 0 ? Tensor{}
                   : arena.allocate(owner, dtype, row.one_dimensional() ? Shape{row.cols} : Shape{rows, row.cols});
}

ExactRows allocate_weight(Arena& arena, const ParamRow& row, const Holding& holding, ops::Weight& whole) {
  const Range rows = holding.exact_rows ? holding.exact_rows(row) : Range{0, row.rows};
  const bool sliced = rows.count() < row.rows;
  const bool split = holding.form == MasterForm::Split, fp32 = !split && holding.compute == DType::F32;
  whole.value = allocate(arena, Owner::Weights, fp32 ? DType::F32 : DType::BF16, row, row.rows);
  ExactRows exact{sliced ? whole.row_range(rows.begin, rows.end) : whole, rows};
  if (split) exact.weight.correction = allocate(arena, Owner::Corrections, DType::I16, row, rows.count());
  if (!split && !fp32) exact.weight.master = allocate(arena, Owner::Fp32Master, DType::F32, row, rows.count());
  if (!sliced) whole = exact.weight;
  return exact;
}

float standard_deviation(const ModelConfig& config, Init init) {
  return init == Init::ResidualNormal ? config.init_std / std::sqrt(2.0f * static_cast<float>(config.layers))
                                      : config.init_std;
}

}  // namespace

Parameters::Parameters(Arena& arena, const ModelConfig& config, const LayerSpec& spec, Holding holding)
    : config_(config), spec_(spec), holding_(std::move(holding)) {
  weights_.resize(param_slots(config));
  exact_.resize(weights_.size());
  arrivals_.resize(weights_.size());
  for (const ParamId& id : ids())
    exact_[id.index()] = allocate_weight(arena, spec[id.param], holding_, weights_[id.index()]);
  if (holding_.fp8) fp8_ = Fp8Weights(arena, spec, ids(), weights_.size(), *holding_.fp8);
}

const ops::Weight& Parameters::at(const ParamId& id) const {
  const ops::Weight& weight = weights_[id.index()];
  require(static_cast<bool>(weight.value), "this process has no parameter {}", logical_name(spec_, id));
  wait_for(id.index());
  return weight;
}

const ops::Weight& Parameters::at(const Context& ctx, const ParamId& id) const {
  if (arrivals_[id.index()]) expose(ctx, Exposed::Weights, [&] { wait_for(id.index()); });
  return at(id);
}

void Parameters::wait_for(size_t index) const {
  if (!arrivals_[index]) return;
  arrivals_[index]->wait();
  arrivals_[index].reset();
}

void Parameters::wait_for_all() const {
  for (size_t index = 0; index < arrivals_.size(); ++index) wait_for(index);
}

template <class Visit>
void Parameters::visit_rows(const ParamId& id, Range rows, const Visit& visit) const {
  const ops::Weight& whole = at(id);
  visit(whole.row_range(rows.begin, rows.end), rows.begin);
  const ExactRows& exact = exact_[id.index()];
  const Range own = {std::max(rows.begin, exact.rows.begin), std::min(rows.end, exact.rows.end)};
  if (whole.value.count() == exact.weight.value.count() || own.begin >= own.end) return;
  visit(exact.weight.row_range(own.begin - exact.rows.begin, own.end - exact.rows.begin), own.begin);
}

void Parameters::store_rows(const Context& ctx, const ParamId& id, Range rows, const float* values) const {
  const ParamRow& row = spec_[id.param];
  if (row.one_dimensional()) return ops::store_fp32(ctx, at(id), values);
  visit_rows(id, rows, [&](const ops::Weight& w, int64_t first) {
    ops::store_fp32(ctx, w, values + (first - rows.begin) * row.cols);
  });
}

ParamId Parameters::head_id() const {
  return {-1, config_.tied_embeddings ? Param::Embedding : Param::Head};
}

Tensor Parameters::acquire(const Context& ctx, const ParamId& id) const {
  if (!spec_[id.param].present()) return {};
  return ops::in_compute_type(ctx, at(ctx, id));
}

LayerWeights Parameters::acquire(const Context& ctx, int64_t layer) const {
  LayerWeights weights;
  for (const ParamRow& row : spec_.params)
    if (in_layer(row.param) && row.present()) {
      const ParamId id{layer, row.param};
      weights[row.param] = acquire(ctx, id);
      if (!row.one_dimensional()) weights.set_matrix(row.param, fp8_.of(ctx, id, weights[row.param]));
    }
  return weights;
}

void Parameters::initialize(const Context& ctx, uint64_t seed) {
  for (const ParamId& id : ids()) {
    const ParamRow& row = spec_[id.param];
    if (row.init == Init::Ones || row.init == Init::Zeros) {
      const std::vector<float> values(static_cast<size_t>(row.count()), row.init == Init::Ones ? 1.0f : 0.0f);
      store_rows(ctx, id, {0, row.rows}, values.data());
      continue;
    }
    const RandomKey key{seed, RngStream::Initialization, 0, 0, id.tensor()};
    const float deviation = standard_deviation(config_, row.init);
    for (const RowPiece& piece : row.pieces)
      visit_rows(id, {piece.local_begin, piece.local_begin + piece.count}, [&](const ops::Weight& w, int64_t first) {
        const int64_t global_first = piece.global_begin + (first - piece.local_begin);
        ops::fill_normal(ctx, w, {key, deviation, row.logical_cols, global_first, row.first_col});
      });
  }
}

}  // namespace agoq::model
