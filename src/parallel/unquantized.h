// Training without any quantization: what --baseline asks for, and what plans compare with.
#pragma once

#include "model/recipe.h"
#include "parallel/precision.h"

namespace agoq::parallel {

// Recomputation is not among it. It changes no number, so --baseline leaves it to --recompute-granularity.
struct Unquantized {
  Precision precision;
  model::Policy policy = model::Policy::Bf16;     // of saved activations
  codec::Codec grad_reduce = codec::Codec::Fp32;  // Parallelism::grad_reduce
};

// Activations and products in `compute`; the master, gradients and moments in fp32, as Megatron-LM has them.
Unquantized unquantized(DType compute);

}  // namespace agoq::parallel
