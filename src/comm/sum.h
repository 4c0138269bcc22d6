// Sums over ranks.
#pragma once

#include "device/context.h"

namespace agoq::comm {

// The parts of a sum, in the order in which they are added: rows [0, before) of `others`, then `own`, then the rest.
// That is rank order where `others` are those of the other ranks, `own` that of rank `before`. However many there are,
// they are told by an address and a stride.
struct SumParts {
  Tensor others;  // [parts, n], or none
  Tensor own;     // n numbers, or none
  int64_t before = 0;

  int64_t count() const { return (others ? others.shape[0] : 0) + (own ? 1 : 0); }
};

// out [n] = Σ parts in the order given: in fp32 for fp32 and bf16 (rounded once), in fp64 for fp64. `out` may be one of
// the parts.
void sum(const Context& ctx, const SumParts& parts, const Tensor& out);
// x += y.
void add(const Context& ctx, const Tensor& y, const Tensor& x);

}  // namespace agoq::comm
