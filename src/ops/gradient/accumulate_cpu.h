// The CPU side of accumulate.h and of the ops that end in a main gradient: no checks; memory is there.
#pragma once

#include "ops/gradient/accumulate.h"

namespace agoq::ops::cpu {

// Rows [begin, begin + delta rows) of the gradient += delta; with `round`, fp32 delta is rounded to bf16 first.
// `workspace`: thread_scratch of one row of the gradient.
void accumulate(const Context& ctx, const MainGrad& grad, const Tensor& delta, int64_t begin, bool round,
                const Tensor& workspace);

// Workspace of dw_slab: fp32 panels of tokens, empty where the operands are fp32 already.
struct PanelWorkspace {
  Tensor dy, x;  // [panel, slab rows], [panel, in]
};
// c [end - begin, in] = (or +=, if add) columns [begin, end) of dy, transposed, times x. c is fp32 and contiguous.
void dw_slab(const Tensor& dy, const Tensor& x, int64_t begin, int64_t end, bool add, float* c,
             const PanelWorkspace& workspace);

// out [1, columns] fp32 = column sums of x.
void column_sums(const Tensor& x, const Tensor& out);

}  // namespace agoq::ops::cpu
