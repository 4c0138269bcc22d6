// Ways to make a layer's products, by name.
#pragma once

#include <string>

#include "train/config/config.h"

namespace agoq::bench {

struct Products {
  DType compute = DType::F32;  // bf16: every result of the model is rounded to it, not products alone
  model::Fp8Layers fp8;        // without a recipe: in the compute type
};

// What --products takes.
//
//   exact        in the compute type of the experiment: fp32
//   bf16         in bf16, and so is every other result
//   rowwise, tensorwise, blockwise   --fp8-format e4m3 --fp8-recipe NAME
//   hybrid       --fp8-format hybrid --fp8-recipe rowwise: gradients in e5m2
//   NAME/DW      y and dx as NAME makes them, both operands of dW by DW:
//                  rowwise     a scale for each feature, over all tokens of the micro-batch
//                  tensorwise  one scale
//                  blockwise   a scale for 128 tokens of a feature
//                  bf16        no 8-bit floats: in the compute type, which is fp32 here
//
// Error for another name.
Products products_from_name(const std::string& name, const model::ModelConfig& model);

}  // namespace agoq::bench
