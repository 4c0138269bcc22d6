// The ops of a training step at the shapes of a model, and the least that each must do: bytes to move, numbers to
// multiply.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/workbench.h"

namespace agoq::bench {

// An op with operands of its own, ready to run.
struct PreparedOp {
  std::function<void(const Context&)> run;
  double bytes = 0;  // each input read once, each output written once; 0: bound by its matrix products
  double flops = 0;  // of its matrix products
};

// Where a training step does it; Alone: not part of one, measured for comparison.
enum class OpPhase : uint8_t { Forward, Backward, Optimizer, Ends, Alone };
std::string_view name_of(OpPhase part);  // "forward", ...

struct Op {
  std::string name;
  OpPhase part = OpPhase::Forward;
  std::function<PreparedOp(Workbench&)> prepare;
};

// What a decoder layer does, in its order; the recipe is that of layer 0. A run that multiplies in 8-bit floats does
// so in this layer: then products have operands made beforehand, and the passes that make those are ops of their own,
// unless a norm, SwiGLU or RoPE writes them. Beside it, the products that make weight gradients without their
// accumulation, and accumulation without the product.
std::vector<Op> layer_ops(const parallel::RunSpec& run_spec);
// Embedding, head and loss; with 8-bit floats, what makes the gradient of the last layer's output an operand.
std::vector<Op> end_ops(const parallel::RunSpec& run_spec);
// Of layer_ops, its matrix products and attention, none of them fused with anything else: what a GPU does at best.
std::vector<Op> ceiling_ops(const parallel::RunSpec& run_spec);
// Names them: "matrix products and attention of a layer", or "products in 8-bit floats and ...".
std::string_view ceiling_name(const parallel::RunSpec& run_spec);
// Encode and decode of [T, H] numbers in every format.
std::vector<Op> codec_ops(const parallel::RunSpec& run_spec);
// A layer's products of 8-bit floats in every way that their operands can be scaled, and the passes that make operands
// of gradients and weights.
std::vector<Op> fp8_ops(const parallel::RunSpec& run_spec);

}  // namespace agoq::bench
