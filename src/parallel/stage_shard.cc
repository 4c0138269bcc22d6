#include "parallel/stage_shard.h"

#include <algorithm>

#include "parallel/schedule.h"

namespace agoq::parallel {

StageShard::StageShard(const model::ModelConfig& model, const model::LayerSpec& spec, const Parallelism& p)
    : embedding(p.stage() == 0), head(p.stage() == p.stages() - 1) {
  const std::vector<LayerRange> all = divide_layers(model.layers, p.stages(), p.chunks, p.end_layers);
  for (int chunk = 0; chunk < p.chunks; ++chunk)
    chunks.push_back(all[static_cast<size_t>(virtual_stage(p.stage(), p.stages(), chunk))]);
  const auto held = [&](const model::ParamId& id) {
    if (id.param == model::Param::Embedding) return embedding || (head && model.tied_embeddings);
    if (id.layer < 0) return head;
    return std::any_of(chunks.begin(), chunks.end(),
                       [&](const LayerRange& c) { return id.layer >= c.begin && id.layer < c.end; });
  };
  for (const model::ParamId& id : all_params(model, spec))
    if (held(id)) ids.push_back(id);
}

int64_t StageShard::layers() const {
  int64_t count = 0;
  for (const LayerRange& chunk : chunks) count += chunk.count();
  return count;
}

}  // namespace agoq::parallel
