// What a rank knows of a row of logits, or of its part of one where the vocabulary is divided; or all ranks together.
#pragma once

#include <cstdint>

namespace agoq::ops {

struct RowSums {
  float most;    // the largest logit
  float total;   // Σ exp(logit - most)
  float target;  // the target's logit, or 0 if another rank has it
};
inline constexpr int64_t kRowSums = 3;  // as fp32 numbers, in tensors
static_assert(sizeof(RowSums) == kRowSums * sizeof(float));

}  // namespace agoq::ops
