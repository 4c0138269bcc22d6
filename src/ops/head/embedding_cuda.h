// The CUDA side of embedding.h: no checks; memory is there. (The gather is read_rows of weight_cuda.h.)
#pragma once

#include "ops/head/embedding.h"

namespace agoq::ops::cuda {

struct EmbeddingBackwardWorkspace {
  Tensor places;  // int32 [T]: 0, 1, 2, ...
  Tensor sorted;  // int32 [T]: the tokens in order
  Tensor order;   // int32 [T]: where they stood
  Tensor heads;   // int32 [T]: where in `sorted` each distinct token begins
  Tensor runs;    // int32 [1]: how many those are
  Tensor cub;     // bytes for cub's sort and selection
};
void embedding_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, const MainGrad& grad, int64_t first,
                        const EmbeddingBackwardWorkspace& workspace);

}  // namespace agoq::ops::cuda
