// What every BLAS is asked for.
#pragma once

#include "base/tensor.h"

namespace agoq::ops {

// c = op(a)·op(b) + beta·c + residual + bias; op(a) [m, k], op(b) [k, n], c and residual [m, n], bias [n].
struct Product {
  Tensor a, b, c;
  bool transpose_a = false, transpose_b = false;
  float beta = 0;
  Tensor residual, bias;
  int64_t m = 0, n = 0, k = 0;
  int64_t a_stride = 0;  // numbers from one row of a to the next, if a is a part of a wider matrix (on a GPU only)
};

}  // namespace agoq::ops
