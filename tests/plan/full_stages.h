// What must hold of the widths of a pipeline's stages: none needs more memory than the first, and what any of them
// leaves is less than its next wider choice would take. Both as a dry run counts, whatever the choice was made by.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "plan/stage_plan.h"

namespace agoq::test {

inline parallel::RunSpec pipeline_run_spec(const model::ModelConfig& model, const comm::Mesh& mesh, int chunks,
                                           int micro_batches, int64_t sequence) {
  parallel::RunSpec run_spec;
  run_spec.model = model;
  run_spec.recipe = model::make_recipe(model, model::LayerSpec(model), model::Policy::Agoq, model::Recompute::None, "");
  run_spec.precision.compute = DType::BF16;
  run_spec.sequence_length = sequence;
  run_spec.parallelism.mesh = mesh;
  run_spec.parallelism.chunks = chunks;
  run_spec.parallelism.micro_batches = micro_batches;
  return run_spec;
}

inline parallel::RunSpec pipeline_run_spec(const std::string& preset, const comm::Mesh& mesh, int chunks,
                                           int micro_batches, int64_t sequence) {
  return pipeline_run_spec(model::preset(preset), mesh, chunks, micro_batches, sequence);
}

// The recipes in which one norm or MLP input of a stage, of the layers that share a place in a slot, is one width
// wider; of places that keep the same only the first.
inline std::vector<model::Recipe> next_wider(const parallel::RunSpec& run_spec, const plan::RankPlan& stage) {
  static const std::vector<codec::Codec> kWidths = {codec::Codec::Fp4, codec::Codec::Fp5, codec::Codec::Fp6,
                                                    codec::Codec::Int8, codec::Codec::Bf16};
  std::vector<model::Recipe> recipes;
  std::set<std::pair<model::SavedTensor, std::vector<codec::Codec>>> seen;
  for (int64_t place = 0; place < stage.chunks[0].count(); ++place)
    for (const model::SavedTensor kept : {model::SavedTensor::X1, model::SavedTensor::X2, model::SavedTensor::GateUp}) {
      model::Recipe wider = run_spec.recipe;
      std::vector<codec::Codec> before;
      for (const parallel::LayerRange& chunk : stage.chunks) {
        if (place >= chunk.count()) continue;
        before.push_back(run_spec.recipe.at(chunk.begin + place, kept));
        const auto now = std::find(kWidths.begin(), kWidths.end(), before.back());
        if (now != kWidths.end() && now + 1 != kWidths.end()) wider.set(chunk.begin + place, kept, *(now + 1));
      }
      if (seen.insert({kept, before}).second && wider.layers != run_spec.recipe.layers)
        recipes.push_back(std::move(wider));
    }
  return recipes;
}

// The stages of the job with widths of their own.
inline std::vector<plan::RankPlan> expect_full_stages(const parallel::RunSpec& given) {
  const parallel::RunSpec run_spec = plan::with_stage_widths(given, Device::Cuda);
  std::vector<plan::RankPlan> stages = plan::plan_stages(run_spec, Device::Cuda);
  const std::vector<plan::RankPlan> before = plan::plan_stages(given, Device::Cuda);
  const size_t limit = stages[0].layout.total;
  for (const plan::RankPlan& stage : stages) {
    const size_t own = before[static_cast<size_t>(stage.stage)].layout.total;  // a head can need more than stage 0
    EXPECT_LE(stage.layout.total, std::max(limit, own)) << stage.stage;
    parallel::RunSpec wider = plan::at_rank(run_spec, stage.rank);
    for (model::Recipe& recipe : next_wider(run_spec, stage)) {
      wider.recipe = std::move(recipe);
      EXPECT_GT(plan::plan_layout(wider, Device::Cuda).total, limit)
          << "stage " << stage.stage << " leaves " << limit - stage.layout.total << " bytes: " << stage.widths;
    }
  }
  return stages;
}

}  // namespace agoq::test
