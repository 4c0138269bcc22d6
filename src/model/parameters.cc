#include "model/parameters.h"

#include <algorithm>
#include <cmath>

#include "device/exposed.h"

namespace agoq::model {
namespace {

Tensor allocate(Arena& arena, Owner owner, DType dtype, const ParamRow& row, int64_t rows) {
  const Shape shape = row.one_dimensional() ? Shape{row.cols} : Shape{rows, row.cols};
  return rows == 0 ? Tensor{nullptr, dtype, arena.device(), shape} : arena.allocate(owner, dtype, shape);
}

// Rows `held` of a weight, of which rows `exact` are held exactly.
ExactRows allocate_weight(Arena& arena, const ParamRow& row, const Holding& holding, const Range& held,
                          ops::Weight& weight) {
  const Range rows = holding.exact_rows ? holding.exact_rows(row) : held;
  const bool sliced = rows.count() < held.count();
  const bool split = holding.form == MasterForm::Split, fp32 = !split && holding.compute == DType::F32;
  weight.value = allocate(arena, Owner::Weights, fp32 ? DType::F32 : DType::BF16, row, held.count());
  ExactRows exact{sliced ? weight.row_range(rows.begin - held.begin, rows.end - held.begin) : weight, rows};
  if (sliced && rows.count() == 0) return exact;
  if (split) exact.weight.correction = allocate(arena, Owner::Corrections, DType::I16, row, rows.count());
  if (!split && !fp32) exact.weight.master = allocate(arena, Owner::Fp32Master, DType::F32, row, rows.count());
  if (!sliced) weight = exact.weight;
  return exact;
}

Range common(const Range& a, const Range& b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

float standard_deviation(const ModelConfig& config, Init init) {
  return init == Init::ResidualNormal ? config.init_std / std::sqrt(2.0f * static_cast<float>(config.layers))
                                      : config.init_std;
}

}  // namespace

Parameters::Parameters(Arena& arena, const ModelConfig& config, const LayerSpec& spec, Holding holding)
    : config_(config), spec_(spec), holding_(std::move(holding)) {
  weights_.resize(param_slots(config));
  rows_.resize(weights_.size());
  exact_.resize(weights_.size());
  arrivals_.resize(weights_.size());
  const WeightSlices& slices = holding_.slices;
  for (const ParamId& id : ids()) {
    const ParamRow& row = spec[id.param];
    const comm::ProcessGroup* group = slices.group ? slices.group(row) : nullptr;
    Range& held = rows_[id.index()];
    held = group ? slices.rows(row, group->rank()) : Range{0, row.rows};
    exact_[id.index()] = allocate_weight(arena, row, holding_, held, weights_[id.index()]);
  }
  if (slices.group) gathered_ = GatheredWeights(arena, spec, ids(), weights_, holding_.compute, slices);
  if (holding_.fp8) fp8_ = Fp8Weights(arena, spec, ids(), weights_.size(), *holding_.fp8);
}

const ops::Weight& Parameters::at(const ParamId& id) const {
  require(holds(id), "this process has no parameter {}", logical_name(spec_, id));
  wait_for(id.index());
  return weights_[id.index()];
}

ops::Weight Parameters::whole(const Context& ctx, const ParamId& id) const {
  if (gathered_.has(id.param)) return gathered_.at(ctx, id);
  if (arrivals_[id.index()]) expose(ctx, Exposed::Weights, [&] { wait_for(id.index()); });
  return at(id);
}

void Parameters::begin_step() {
  gathered_.outdate();
  fp8_.outdate();
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
  const auto visit_held = [&](const ops::Weight& weight, const Range& held) {
    const Range part = common(rows, held);
    if (part.count() > 0) visit(weight.row_range(part.begin - held.begin, part.end - held.begin), part.begin);
  };
  const ops::Weight& weight = at(id);
  visit_held(weight, rows_[id.index()]);
  const ExactRows& exact = exact_[id.index()];
  if (weight.value.count() != exact.weight.value.count()) visit_held(exact.weight, exact.rows);
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
  return ops::in_compute_type(ctx, whole(ctx, id));
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
