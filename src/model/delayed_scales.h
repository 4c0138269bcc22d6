// The scales of --fp8-recipe delayed, of the layers that a process holds, and the history that they are made from
// (ops/linear/delayed_scale.h).
#pragma once

#include <array>
#include <vector>

#include "comm/process_group.h"
#include "model/layer_spec.h"
#include "ops/linear/fp8.h"

namespace agoq::model {

// The weights that products in 8-bit floats read.
inline constexpr std::array kFp8Weights = {Param::Qkv, Param::Out, Param::GateUp, Param::Down};
inline constexpr int64_t kSitesOfLayer = kFp8Weights.size() * ops::kScaleRoles;

class DelayedScales {
 public:
  // `layers`: those of this process that multiply in 8-bit floats. The recipe says delayed.
  DelayedScales(Arena& arena, const ops::Fp8Recipe& recipe, std::vector<int64_t> layers);

  // Of the products of a weight; null if they are not in 8-bit floats.
  const ops::ScaleSites* of(const ParamId& id) const;

  // What was seen since the last call by the ranks of `group`, which hold the same layers, becomes history, or is
  // forgotten; scales are made anew.
  void end_step(const Context& ctx, const comm::ProcessGroup& group, bool remember);

  // For a step that is none: as if all scales were known, until one ends.
  void assume_known();

  const std::vector<int64_t>& layers() const { return layers_; }
  // [kSitesOfLayer, steps remembered] fp32: x, w and dy of each of kFp8Weights; the newest amax first, 0: none.
  Tensor history(int64_t layer) const;

 private:
  int64_t place_of(int64_t layer) const;  // in layers_; -1: not there
  void set_known(bool known);
  void find_known(const Context& ctx);

  ops::DelayedScaling how_;
  std::array<DType, ops::kScaleRoles> formats_;
  std::vector<int64_t> layers_;
  Tensor amaxes_;  // [sites], as scales
  ops::ScaleHistory history_;
  std::vector<ops::ScaleSites> sites_;  // of each of kFp8Weights, layer by layer
  bool assumed_ = false;
};

}  // namespace agoq::model
