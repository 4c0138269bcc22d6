// Stages of a pipeline: none needs more memory than the first, and none leaves much of it.
#include "plan/stage_plan.h"

#include <gmock/gmock.h>

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "base/error_of.h"
#include "comm/thread_transport.h"
#include "parallel/tiny_state.h"
#include "plan/full_stages.h"

namespace agoq::plan {
namespace {

using codec::Codec;
using model::SavedTensor;
using test::pipeline_run_spec;
using testing::ElementsAre;
using testing::HasSubstr;

parallel::RunSpec llama3(int chunks) {
  return pipeline_run_spec("llama3-8b", parallel::training_mesh({1, 1, 4}), chunks, 8, 8192);
}

std::vector<int> in_flight(const std::vector<RankPlan>& stages) {
  std::vector<int> counts;
  for (const RankPlan& stage : stages) counts.push_back(stage.in_flight);
  return counts;
}

void expect_flat_peaks(const parallel::RunSpec& given) {
  const std::vector<RankPlan> stages = test::expect_full_stages(given);
  EXPECT_EQ(stages[0].layout.total, plan_stages(given, Device::Cuda)[0].layout.total);
  EXPECT_EQ(largest(stages).layout.total, largest_total(given, Device::Cuda));
}

TEST(StagePlan, PeaksOfAPipelineAreFlat) {
  expect_flat_peaks(llama3(1));
  EXPECT_THAT(in_flight(plan_stages(llama3(1), Device::Cuda)), ElementsAre(4, 3, 2, 1));
}

TEST(StagePlan, PeaksOfAnInterleavedPipelineAreFlat) {
  expect_flat_peaks(llama3(2));
  EXPECT_THAT(in_flight(plan_stages(llama3(2), Device::Cuda)), ElementsAre(11, 9, 7, 5));
}

TEST(StagePlan, PeaksAreFlatWhereStagesAreDividedFurther) {
  expect_flat_peaks(pipeline_run_spec("llama3-8b", parallel::training_mesh({2, 2, 4}), 2, 8, 8192));
  expect_flat_peaks(pipeline_run_spec("llama2-7b", parallel::training_mesh({1, 1, 8}), 1, 8, 4096));
}

TEST(StagePlan, WidthsAreTheSameOnAllRanksAndOnlyWiden) {
  parallel::RunSpec run_spec = pipeline_run_spec("llama3-8b", parallel::training_mesh({2, 2, 4}), 1, 8, 8192);
  run_spec.recipe =
      model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), model::Policy::Agoq, model::Recompute::None,
                         "layers=0-31,x1=int8;layers=20,mlp=bf16;layers=9,norm=nf4");
  const model::Recipe chosen = with_stage_widths(run_spec, Device::Cuda).recipe;
  for (int rank = 1; rank < run_spec.parallelism.mesh.ranks(); ++rank) {
    run_spec.parallelism.rank = rank;
    EXPECT_EQ(with_stage_widths(run_spec, Device::Cuda).recipe.layers, chosen.layers) << rank;
  }
  bool wider = false;
  for (int64_t layer = 0; layer < run_spec.model.layers; ++layer)
    for (size_t k = 0; k < model::kSavedTensors; ++k) {
      const Codec before = run_spec.recipe.at(layer, static_cast<SavedTensor>(k)),
                  after = chosen.at(layer, static_cast<SavedTensor>(k));
      if (before == after) continue;
      wider = true;
      EXPECT_GE(layer, 8) << "the first stage stays as it is";
      EXPECT_GT(codec::code_bits(after), codec::code_bits(before));
    }
  EXPECT_TRUE(wider);
}

TEST(StagePlan, NothingChangesWithoutStagesOrWhereWidthsAreToBeTheSame) {
  for (const bool wanted : {true, false}) {
    parallel::RunSpec run_spec =
        pipeline_run_spec("llama3-8b", parallel::training_mesh({2, 2, wanted ? 1 : 4}), 1, 8, 4096);
    run_spec.parallelism.stage_widths = wanted;
    EXPECT_EQ(with_stage_widths(run_spec, Device::Cuda).recipe.layers, run_spec.recipe.layers);
  }
}

// A head much larger than the layers: the last stage is over the limit already, and stays as it is.
TEST(StagePlan, AStageWithoutRoomKeepsItsRecipe) {
  parallel::RunSpec run_spec = pipeline_run_spec("demo", parallel::training_mesh({1, 1, 2}), 1, 2, 64);
  run_spec.model.vocab_size = 200000;
  run_spec.model.tied_embeddings = false;
  const auto before = plan_stages(run_spec, Device::Cuda);
  ASSERT_GT(before[1].layout.total, before[0].layout.total);
  EXPECT_EQ(with_stage_widths(run_spec, Device::Cuda).recipe.layers, run_spec.recipe.layers);
}

// Vocabulary and rows that neither axis divides.
TEST(StagePlan, NoRankHoldsMoreThanTheLargestStage) {
  for (const parallel::MeshShape& shape : {parallel::MeshShape{2, 3, 2}, {4, 1, 4}, {1, 5, 3}}) {
    parallel::RunSpec run_spec = pipeline_run_spec("llama3.2-1b", parallel::training_mesh(shape), 1, 4, 1024);
    run_spec.model.vocab_size = 128257;
    run_spec = with_stage_widths(run_spec, Device::Cuda);
    const std::vector<RankPlan> ranks = plan_ranks(run_spec, Device::Cuda),
                                stages = plan_stages(run_spec, Device::Cuda);
    ASSERT_EQ(static_cast<int>(ranks.size()), run_spec.parallelism.mesh.ranks());
    size_t least = ranks[0].layout.total;
    for (const RankPlan& rank : ranks) {
      EXPECT_LE(rank.layout.total, stages[static_cast<size_t>(rank.stage)].layout.total) << rank.rank;
      least = std::min(least, rank.layout.total);
    }
    EXPECT_LT(least, largest(stages).layout.total);
  }
}

TEST(StagePlan, StagesTogetherHoldTheModel) {
  const parallel::RunSpec run_spec = llama3(2);
  int64_t parameters = 0;
  std::vector<bool> held(static_cast<size_t>(run_spec.model.layers));
  for (const RankPlan& stage : plan_stages(run_spec, Device::Cuda)) {
    parameters += stage.parameters;
    EXPECT_EQ(stage.chunks.size(), 2U);
    for (const parallel::LayerRange& chunk : stage.chunks)
      for (int64_t layer = chunk.begin; layer < chunk.end; ++layer) held[static_cast<size_t>(layer)] = true;
  }
  EXPECT_EQ(parameters, run_spec.model.parameters());
  EXPECT_THAT(held, testing::Each(true));
}

// From the shapes of LLaMA3-8B: bf16 activations of 8192 x 4096, of 8 micro-batches, forward and back.
TEST(StagePlan, SendsActivationsToTheNeighbours) {
  constexpr uint64_t kStream = uint64_t{8192} * 4096 * 2 * 8;
  std::vector<uint64_t> sent, interleaved;
  for (const RankPlan& stage : plan_stages(llama3(1), Device::Cuda)) sent.push_back(stage.sent.pipeline / kStream);
  for (const RankPlan& stage : plan_stages(llama3(2), Device::Cuda))
    interleaved.push_back(stage.sent.pipeline / kStream);
  EXPECT_THAT(sent, ElementsAre(1, 2, 2, 1));
  EXPECT_THAT(interleaved, ElementsAre(3, 4, 4, 3));
}

// Codes and scales of gradients to the other, bf16 weights and their corrections back: a half of each.
TEST(StagePlan, SendsGradientsAndWeightsOnceAStep) {
  const parallel::RunSpec run_spec = pipeline_run_spec("llama3-8b", parallel::training_mesh({1, 2, 1}), 1, 4, 1024);
  const RankPlan plan = plan_rank(run_spec, Device::Cuda);
  const double bytes = static_cast<double>(run_spec.model.parameters()) / 2 * (1 + 2. / 128 + 2);
  EXPECT_NEAR(static_cast<double>(plan.sent.data), bytes, 0.001 * bytes);
  EXPECT_EQ(plan.sent.tensor, 0U);
}

// Two steps on threads, in memory of the planned size: what ranks keep and send is what was planned.
void expect_training_as_planned(const parallel::RunSpec& run_spec) {
  const std::vector<RankPlan> plans = plan_ranks(run_spec, Device::Cpu);
  test::ThreadWorld world(static_cast<int>(plans.size()));
  world.run([&](comm::Transport& transport) {
    omp_set_num_threads(1);
    const RankPlan& plan = plans[static_cast<size_t>(transport.rank())];
    Arena arena(Device::Cpu, plan.layout.total);
    parallel::TrainingState state(arena, Device::Cpu, at_rank(run_spec, plan.rank), &transport);
    state.params().initialize(state.context(), 1);
    std::vector<int32_t> ids(static_cast<size_t>(run_spec.tokens())), positions(ids.size()), starts(ids.size());
    std::vector<float> weights(ids.size(), 1.0f);
    for (int64_t t = 0; t < run_spec.tokens(); ++t) {
      const auto at = static_cast<size_t>(t);
      ids[at] = static_cast<int32_t>(t * 5 % 257);
      positions[at] = static_cast<int32_t>(t % run_spec.sequence_length);
      starts[at] = static_cast<int32_t>(t - t % run_spec.sequence_length);
    }
    const auto tensor = [](auto& v) { return host_tensor(v.data(), {static_cast<int64_t>(v.size())}); };
    const parallel::MicroBatch batch{tensor(ids), tensor(ids), tensor(weights), tensor(positions), tensor(starts)};
    const std::vector<parallel::MicroBatch> batches(static_cast<size_t>(run_spec.parallelism.micro_batches), batch);
    std::vector<double> losses;
    for (int step = 0; step < 2; ++step) {
      const parallel::Traffic before = state.groups().sent();
      state.begin_step(run_spec.parallelism.micro_batches);
      state.forward_backward(batches, 1 / static_cast<float>(batches.size() * ids.size()));
      state.optimizer().step(state.context(), 1e-3, {});  // 1e-2 overshoots from some initial weights
      losses.push_back(state.take_loss());
      const parallel::Traffic sent = state.groups().sent() - before;
      EXPECT_EQ(sent.tensor, plan.sent.tensor) << plan.rank;
      EXPECT_EQ(sent.data, plan.sent.data) << plan.rank;
      EXPECT_EQ(sent.pipeline, plan.sent.pipeline) << plan.rank;
    }
    EXPECT_LT(losses[1], losses[0]);
    EXPECT_EQ(state.saved().most_in_use(), plan.in_flight);
    EXPECT_LE(arena.total_bytes(), plan.layout.total);
  });
}

parallel::RunSpec tiny_run_spec(const comm::Mesh& mesh, int chunks, bool tied = false) {
  model::ModelConfig model = test::tiny_model();
  model.layers = 8;
  model.tied_embeddings = tied;
  parallel::RunSpec run_spec = test::tiny_run_spec(model);
  run_spec.sequence_length = 64;
  run_spec.parallelism.mesh = mesh;
  run_spec.parallelism.chunks = chunks;
  run_spec.parallelism.micro_batches = 4;
  return run_spec;
}

// Ranks of a tensor group gather codes of the chosen widths.
TEST(StagePlan, WidenedStagesTrainAsPlanned) {
  const parallel::RunSpec run_spec = tiny_run_spec(parallel::training_mesh({2, 1, 2}), 2),
                          wider = with_stage_widths(run_spec, Device::Cpu);
  ASSERT_NE(wider.recipe.layers, run_spec.recipe.layers);
  expect_training_as_planned(wider);
}

TEST(StagePlan, EveryExchangeOfGradientsIsPlanned) {
  expect_training_as_planned(tiny_run_spec(parallel::training_mesh({2, 2, 2}), 1, /*tied=*/true));
  parallel::RunSpec all_alike = tiny_run_spec(parallel::training_mesh({2, 2, 1}), 1);
  all_alike.parallelism.sharding = parallel::Sharding::None;
  expect_training_as_planned(all_alike);
  parallel::RunSpec encoded = tiny_run_spec(parallel::training_mesh({1, 2, 2}), 1);
  encoded.precision.main_grads = Codec::Fp32;
  ASSERT_EQ(encoded.parallelism.grad_reduce, Codec::Int8);
  expect_training_as_planned(encoded);
}

TEST(StagePlan, RefusesWhatCannotBeDivided) {
  const auto error_in = [](const parallel::RunSpec& run_spec) {
    return error_of([&] { plan_stages(with_stage_widths(run_spec, Device::Cuda), Device::Cuda); });
  };
  EXPECT_THAT(error_in(pipeline_run_spec("llama3-8b", parallel::training_mesh({3, 1, 1}), 1, 1, 1024)),
              HasSubstr("use 1, 2, 4, 8"));
  EXPECT_THAT(error_in(pipeline_run_spec("llama3-8b", parallel::training_mesh({1, 1, 33}), 1, 1, 1024)),
              HasSubstr("at most 32 stages"));
}

}  // namespace
}  // namespace agoq::plan
