// Rotary position embedding (Su et al. 2021), half-split layout as in Hugging Face LLaMA, with LLaMA 3.1's frequency
// scaling.
#pragma once

#include <optional>

#include "device/context.h"
#include "ops/heads.h"
#include "ops/linear/operand.h"

namespace agoq::ops {

struct Llama3Scaling {
  double factor = 8, low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_positions = 8192;
};
struct RopeSpec {
  int64_t dim = 0;
  double theta = 10000;
  std::optional<Llama3Scaling> llama3;
  double linear_factor = 1;  // rope_scaling "linear": positions divided by it
};

// table [positions, D] fp32: cos in the first D/2 columns, sin in the last; angles as Hugging Face computes them
// (fp32).
void fill_rope_table(const RopeSpec& spec, const Tensor& table);

// Rotates q and k of qkv [T, (Hq + 2 Hkv) D] in place by ctx.positions; backward rotates dqkv back.
void rope(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& table);
void rope_backward(const Context& ctx, const Tensor& dqkv, const Heads& heads, const Tensor& table);
// The same as products of backward read it (ops/linear/fp8.h: gradient_input): in 8-bit floats, or dqkv itself. If
// `in_place_too`, dqkv is rotated as well; otherwise it is so only where it is returned.
Operand rope_backward_input(const Context& ctx, const Tensor& dqkv, const Heads& heads, const Tensor& table,
                            bool in_place_too = false);

}  // namespace agoq::ops
