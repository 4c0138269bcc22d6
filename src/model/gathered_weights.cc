#include "model/gathered_weights.h"

#include <algorithm>

#include "device/exposed.h"
#include "device/transfer.h"

namespace agoq::model {
namespace {

constexpr int64_t kAlignment = 512;  // bytes, of a part

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

template <class WeightType>
auto parts_of(WeightType& w) {
  return std::array{&w.value, &w.correction, &w.master};
}

constexpr MatrixSet kNothing{};

}  // namespace

void RowGather::add(const comm::ProcessGroup& group, const Tensor& mine, const Tensor& whole,
                    const std::function<Range(int rank)>& rows) {
  for (int peer = 0; peer < group.size(); ++peer) {
    if (peer == group.rank()) continue;
    const Range theirs = rows(peer);
    if (rows(group.rank()).count() > 0) sends.push_back({peer, mine});
    if (theirs.count() > 0) receives.push_back({peer, whole.row_range(theirs.begin, theirs.end)});
  }
}

GatheredWeights::GatheredWeights(Arena& arena, const LayerSpec& spec, const std::vector<ParamId>& ids,
                                 const std::vector<ops::Weight>& weights, DType compute, WeightSlices slices)
    : spec_(&spec), weights_(&weights), slices_(std::move(slices)) {
  for (const ParamId& id : ids) {
    if (!slices_.group(spec[id.param])) continue;
    ops::Weight& form = forms_[static_cast<size_t>(id.param)];
    form = weights[id.index()];
    if (compute == DType::BF16) form = {form.value, {}, {}};
  }
  const auto bytes = [&](Param param) {
    int64_t sum = 0;
    for (const Tensor* part : parts_of(forms_[static_cast<size_t>(param)]))
      if (part->shape.rank() == 2) sum += aligned(spec[param].count() * static_cast<int64_t>(size_of(part->dtype)));
    return sum;
  };
  buffer_ = LayerBuffer(arena, Owner::GatheredWeights, spec, ids, bytes);
}

ops::Weight GatheredWeights::place(Param param, size_t half) const {
  const ParamRow& row = (*spec_)[param];
  const Tensor bytes = buffer_.of(param, half);
  ops::Weight whole;
  const ops::Weight& form = forms_[static_cast<size_t>(param)];
  int64_t at = 0;
  const auto parts = parts_of(whole);
  const auto forms = parts_of(form);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (forms[i]->shape.rank() != 2) continue;
    *parts[i] = {bytes.data ? bytes.raw() + at : nullptr, forms[i]->dtype, bytes.device, {row.rows, row.cols}};
    at += aligned(static_cast<int64_t>(parts[i]->bytes()));
  }
  return whole;
}

ops::Weight GatheredWeights::at(const Context& ctx, const ParamId& id) {
  last_ = find_or_start(ctx, set_of(id));
  wait(ctx, last_);
  return place(id.param, last_);
}

void GatheredWeights::prefetch(const Context& ctx, int64_t layer) {
  if (buffer_) find_or_start(ctx, {layer});
}

size_t GatheredWeights::find_or_start(const Context& ctx, const MatrixSet& set) {
  for (size_t half = 0; half < halves_.size(); ++half)
    if (holds(half, set)) return half;
  const size_t half = 1 - last_;
  start(ctx, set, half);
  return half;
}

void GatheredWeights::start(const Context& ctx, const MatrixSet& set, size_t half) {
  for (size_t h = 0; h < halves_.size(); ++h) {
    // What an end of the model has overwritten is gone, and what overwrites a part of it ends it.
    if (h != half && !buffer_.wide(set) && !buffer_.wide(halves_[h].set)) continue;
    wait(ctx, h);
    halves_[h].set = kNothing;
  }
  RowGather gather;
  const comm::ProcessGroup* group = nullptr;
  for (const ParamRow& row : spec_->params) {
    const ParamId id{set.layer, row.param};
    if (!buffer_.has(row.param) || set_of(id) != set) continue;
    group = slices_.group(row);
    const auto rows = [&](int rank) { return slices_.rows(row, rank); };
    const Range own = rows(group->rank());
    ops::Weight whole = place(row.param, half);
    ops::Weight mine = (*weights_)[id.index()];
    const auto wholes = parts_of(whole), slices = parts_of(mine);
    for (size_t i = 0; i < wholes.size(); ++i) {
      if (wholes[i]->shape.rank() != 2) continue;
      if (own.count() > 0) copy(ctx, *slices[i], wholes[i]->row_range(own.begin, own.end));
      gather.add(*group, *slices[i], *wholes[i], rows);
    }
  }
  halves_[half].set = set;
  if (group) halves_[half].pending = group->start(ctx, gather.sends, gather.receives);
}

void GatheredWeights::wait(const Context& ctx, size_t half) {
  std::unique_ptr<comm::Pending>& pending = halves_[half].pending;
  if (pending) expose(ctx, Exposed::Weights, [&] { pending->wait(); });
  pending.reset();
}

void GatheredWeights::outdate() {
  for (Half& half : halves_) {
    if (half.pending) half.pending->wait();
    half = {};
  }
}

}  // namespace agoq::model
