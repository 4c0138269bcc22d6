// The part of the model that a process holds: the layers of its chunks, and the ends of the model on the end stages.
#pragma once

#include <vector>

#include "parallel/parallelism.h"

namespace agoq::parallel {

struct StageShard {
  StageShard(const model::ModelConfig& model, const model::LayerSpec& spec, const Parallelism& parallelism);

  std::vector<LayerRange> chunks;   // layers of each
  bool embedding = true;            // its first chunk begins with the embedding
  bool head = true;                 // its last chunk ends with the final norm, the head and the loss
  std::vector<model::ParamId> ids;  // in the order of forward

  bool first(int chunk) const { return embedding && chunk == 0; }
  bool last(int chunk) const { return head && chunk + 1 == static_cast<int>(chunks.size()); }
  int64_t layers() const;
};

}  // namespace agoq::parallel
