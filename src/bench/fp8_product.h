// Products of operands in 8-bit floats, and the passes that make such operands of numbers.
#pragma once

#include "bench/op.h"

namespace agoq::bench {

// c [m, n] = a [m, k] · b [n, k]ᵀ + beta · c
struct Fp8Product {
  int64_t m = 0, n = 0, k = 0;
  ops::OperandFormat a, b;
  ops::Accumulation accumulation = ops::Accumulation::Fp32;
  float beta = 0;
};
// Its operands are made beforehand.
PreparedOp prepare(Workbench& bench, const Fp8Product& product);

// Numbers [rows, cols] become an operand [rows, cols], or with Major::MN its transpose.
PreparedOp prepare_cast(Workbench& bench, int64_t rows, int64_t cols, ops::Major major, ops::OperandFormat format);

// Of such an operand [rows, k], with its scales.
double fp8_bytes(int64_t rows, int64_t k, ops::OperandFormat format);

}  // namespace agoq::bench
