// What every BLAS is asked for.
#pragma once

#include "ops/linear/operand.h"

namespace agoq::ops {

// How a GPU adds up products of 8-bit floats: fast, in the registers of the tensor cores, which keep some 14 bits and
// lose sums of many terms of one sign; or moved to fp32 every 128 of k or so. Other types, and CPUs, always add in
// fp32.
enum class Accumulation : uint8_t { Fp32, Fast };

// c = a·bᵀ + beta·c + residual + bias; a [m, k], b [n, k], c and residual [m, n], bias [n]. Rounded once, to c's type.
struct Product {
  Operand a, b;
  Tensor c;
  float beta = 0;
  Tensor residual = {}, bias = {};
  Accumulation accumulation = Accumulation::Fp32;

  int64_t m() const { return a.rows(); }
  int64_t n() const { return b.rows(); }
  int64_t k() const { return a.k(); }
};

}  // namespace agoq::ops
