// CPU kernels of ops/linear/weight.h.
#pragma once

#include "ops/linear/weight.h"

namespace agoq::ops::cpu {

// out = the weight as fp32 or bf16 numbers.
void read_weight(const Weight& w, const Tensor& out);
// Writes the held form; the index of the first value that bf16 cannot hold (not finite, or rounded to Inf), or -1.
int64_t write_weight(const Weight& w, const float* values);
// out [r, c] = the numbers of fill_normal().
void normal_rows(const NormalRows& numbers, const Tensor& out);

}  // namespace agoq::ops::cpu
