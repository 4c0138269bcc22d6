#include "model/delayed_scales.h"

#include <algorithm>
#include <utility>

#include "device/transfer.h"

namespace agoq::model {
namespace {

// The first of row i.
Tensor first_of(const Tensor& rows, int64_t i) {
  Tensor first = rows.row_range(i, i + 1);
  first.shape = {1};
  return first;
}

template <class Visit>
void for_roles(ops::ScaleSites& sites, const Visit& visit) {
  visit(sites.x), visit(sites.w), visit(sites.dy);
}

}  // namespace

DelayedScales::DelayedScales(Arena& arena, const ops::Fp8Recipe& recipe, std::vector<int64_t> layers)
    : how_(recipe.delayed.value()),
      formats_{recipe.x.dtype, recipe.w.dtype, recipe.dy.dtype},
      layers_(std::move(layers)) {
  const auto weights = static_cast<int64_t>(layers_.size() * kFp8Weights.size()), sites = weights * ops::kScaleRoles;
  const auto allocate = [&](Shape shape) { return arena.allocate(Owner::AmaxHistory, DType::F32, shape); };
  history_ = {allocate({sites, how_.history}), allocate(ops::scales_shape(sites))};
  amaxes_ = allocate({sites});
  sites_.resize(static_cast<size_t>(weights));
  int64_t site = 0;
  for (ops::ScaleSites& of_weight : sites_)
    for_roles(of_weight, [&](ops::ScaleSite& s) {
      s = {first_of(history_.scales, site), first_of(amaxes_.view({sites, 1}), site)};
      ++site;
    });
}

int64_t DelayedScales::place_of(int64_t layer) const {
  const auto place = std::ranges::find(layers_, layer);
  return place == layers_.end() ? -1 : place - layers_.begin();
}

const ops::ScaleSites* DelayedScales::of(const ParamId& id) const {
  const int64_t place = place_of(id.layer);
  const auto weight = std::ranges::find(kFp8Weights, id.param);
  if (place < 0 || weight == kFp8Weights.end()) return nullptr;
  return &sites_[static_cast<size_t>(place) * kFp8Weights.size() + static_cast<size_t>(weight - kFp8Weights.begin())];
}

Tensor DelayedScales::history(int64_t layer) const {
  const int64_t place = place_of(layer);
  require(place >= 0, "this process has no amax history of layer {}", layer);
  return history_.amaxes.row_range(place * kSitesOfLayer, (place + 1) * kSitesOfLayer);
}

void DelayedScales::end_step(const Context& ctx, const comm::ProcessGroup& group, bool remember) {
  if (layers_.empty()) return;  // nor has any rank of the group one
  if (std::exchange(assumed_, false)) set_known(false);
  Scope scope(ctx);
  Tensor of_ranks = amaxes_;
  if (remember && !group.alone()) {
    of_ranks = ctx.empty(DType::F32, {group.size(), amaxes_.count()});
    group.all_gather(ctx, amaxes_, of_ranks);
  }
  ops::make_scales(ctx, of_ranks.view({of_ranks.count() / amaxes_.count(), amaxes_.count()}), remember, how_, formats_,
                   history_);
  zero(ctx, amaxes_);
  find_known(ctx);
}

void DelayedScales::set_known(bool known) {
  for (ops::ScaleSites& of_weight : sites_) for_roles(of_weight, [&](ops::ScaleSite& s) { s.known = known; });
}

void DelayedScales::assume_known() {
  set_known(true);
  assumed_ = true;
}

// A tensor that is once known stays so.
void DelayedScales::find_known(const Context& ctx) {
  const auto all_known = [](const ops::ScaleSites& s) { return s.x.known && s.w.known && s.dy.known; };
  if (ctx.meta() || std::ranges::all_of(sites_, all_known)) return;
  std::vector<float> scales(static_cast<size_t>(history_.scales.count()));
  download(ctx, history_.scales, scales.data());
  auto scale = scales.begin();
  for (ops::ScaleSites& of_weight : sites_)
    for_roles(of_weight, [&](ops::ScaleSite& s) {
      s.known = *scale > 0;
      scale += history_.scales.cols();
    });
}

}  // namespace agoq::model
