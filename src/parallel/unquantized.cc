#include "parallel/unquantized.h"

namespace agoq::parallel {

Unquantized unquantized(DType compute) {
  Unquantized plain;
  plain.precision.compute = compute;
  plain.precision.master = model::MasterForm::Fp32;
  plain.precision.main_grads = plain.precision.exp_avg = plain.precision.exp_avg_sq = codec::Codec::Fp32;
  plain.policy = compute == DType::BF16 ? model::Policy::Bf16 : model::Policy::Fp32;
  return plain;
}

}  // namespace agoq::parallel
