// A known-answer test of the library that computes attention on a GPU. A library of another version, or a damaged one,
// can return wrong gradients without an error, and training would go on with them. Only a build with the CUDA backend
// defines it.
#pragma once

#include <string>
#include <vector>

#include "ops/attention/attention.h"

namespace agoq::ops {

// Which calls of the library a run will make.
struct AttentionPaths {
  bool packed = false;         // several documents in a sequence; dense batches are always checked
  bool backward = true;        // gradients too
  bool deterministic = false;  // by the deterministic algorithm
};

// One result of the library beside that of our own kernels.
struct AttentionAnswer {
  std::string path;                              // "dense", "packed", or of a window "packed, window 96"
  std::string result;                            // o, o without lse, dq, dk or dv
  double error = 0;                              // ‖library - own‖ / ‖own‖
  double bound = 0;                              // what bf16's rounding explains
  bool right() const { return error <= bound; }  // false for NaN
};

// Attention of 512 invented tokens with the heads of `spec`, without a window and, if it has one, with one that cuts,
// in bf16, by the library and by our own kernels (attention_generic_cuda.h). Takes some ten MB of the GPU while it
// runs.
std::vector<AttentionAnswer> check_attention(Gpu& gpu, const AttentionSpec& spec, const AttentionPaths& paths);
// Error that names library, version and every path with a wrong result, or what failed.
void require_right_attention(Gpu& gpu, const AttentionSpec& spec, const AttentionPaths& paths);

}  // namespace agoq::ops
