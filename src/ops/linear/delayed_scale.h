// One scale for a tensor, known before the tensor is made: from its largest magnitudes in earlier steps (--fp8-recipe
// delayed; Transformer Engine: DelayedScaling).
//
//   scale = the smallest power of two with (the amax that counts) · 2^margin / scale <= the format's largest number
//
// All casts of a step use the scales of its beginning, and note the largest magnitude that they see. At its end these
// become the newest of each tensor's history, and new scales are made. What exceeds a scale saturates. A scale becomes
// NaN for the rest of the step at the first number that is not finite, so that products show it.
#pragma once

#include <array>

#include "base/tensor.h"
#include "device/context.h"
#include "ops/linear/operand.h"

namespace agoq::ops {

struct DelayedScaling {
  int64_t history = 1024;    // steps that are remembered
  bool most_recent = false;  // the amax that counts is that of the last step; otherwise the largest of the history
  int64_t margin = 0;
  bool operator==(const DelayedScaling&) const = default;
};

// A tensor that is made again in every micro-batch of every step.
struct ScaleSite {
  // [1] fp32: of this step, at a multiple of kScaleAlignment; the largest magnitude in it so far.
  Tensor scale, amax;
  bool known = false;  // otherwise no step that is remembered has seen a number, and each cast finds its own scale
};
// Of the operands of a linear layer's three products. A tensor and its transpose share one.
struct ScaleSites {
  ScaleSite x, w, dy;
};
inline constexpr int64_t kScaleRoles = 3;
inline constexpr int64_t kMostScaleMargin = 8;  // e4m3 has 2^14 of range at full precision

// Of `sites` tensors, which stand in the order x, w, dy, x, ...
struct ScaleHistory {
  Tensor amaxes;  // [sites, history] fp32, the newest first; 0: none
  Tensor scales;  // of scales_shape, fp32, of which the first of each row is the scale; 0: none is known
};
inline Shape scales_shape(int64_t sites) {
  return {sites, kScaleAlignment / static_cast<int64_t>(sizeof(float))};
}

// Ends a step. amaxes [ranks, sites] fp32 of the ranks that share the tensors. With `remember`, those that are finite
// and not zero become the newest of the history: a tensor of zeros says nothing about the next one. In any case scales
// are made anew from the history; `formats`: of x, w and dy.
void make_scales(const Context& ctx, const Tensor& amaxes, bool remember, const DelayedScaling& how,
                 const std::array<DType, kScaleRoles>& formats, const ScaleHistory& history);

}  // namespace agoq::ops
