// CUDA kernels of accumulate.h and of the ops that end in a main gradient: no checks; memory is there.
#pragma once

#include "ops/gradient/accumulate.h"

namespace agoq::ops::cuda {

// Rows [begin, begin + delta rows) of the gradient += delta.
void accumulate(const Context& ctx, const MainGrad& grad, const Tensor& delta, int64_t begin);

// dw [n, in] = (or +=, if add) columns [begin, begin + n) of dy, transposed, times x: rows of the gradient of a weight.
void dw_rows(const Context& ctx, const Tensor& dy, const Tensor& x, int64_t begin, bool add, const Tensor& dw,
             const Tensor& workspace);

// slices [n, cols] fp32 = column sums of n ranges of the rows of x.
inline constexpr int64_t kSlices = 64;
void column_sums(const Context& ctx, const Tensor& x, const Tensor& slices);
// sum [cols] fp32 = (or +=, if add) column sums of slices.
void add_slices(const Context& ctx, const Tensor& slices, bool add, const Tensor& sum);

}  // namespace agoq::ops::cuda
