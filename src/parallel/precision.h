// The independent precision axes of a run (design 4), named as in Megatron-LM where it has the flag.
#pragma once

#include "codec/quantized.h"
#include "model/model.h"

namespace agoq::parallel {

struct Precision {
  DType compute = DType::F32;                            // --compute-dtype
  model::MasterForm master = model::MasterForm::Split;   // --main-params-dtype split|fp32
  codec::Codec main_grads = codec::Codec::Int8;          // --main-grads-dtype int8|fp8|bf16|fp32
  bool stochastic = true;                                // --gradient-rounding stochastic|nearest
  codec::Codec exp_avg = codec::Codec::Dyn8;             // --exp-avg-dtype 8bit|fp32
  codec::Codec exp_avg_sq = codec::Codec::Dyn8Unsigned;  // --exp-avg-sq-dtype 8bit|fp32
  model::Fp8Layers fp8;                                  // --fp8-format, --fp8-recipe, --first-last-layers-bf16
  bool operator==(const Precision&) const = default;
};

}  // namespace agoq::parallel
