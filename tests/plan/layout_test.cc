// The dry run against closed forms that are written here by hand, and against what a real run then holds.
#include "plan/layout.h"

#include <gtest/gtest.h>

#include <numeric>

#include "plan/comparison.h"

namespace agoq::plan {
namespace {

using codec::Codec;
using model::SavedTensor;

// LLaMA3-8B, from its published config.json.
constexpr size_t kLayers = 32, kHidden = 4096, kFfn = 14336, kVocab = 128256, kQkv = (32 + 2 * 8) * 128;
constexpr size_t kTokens = 4096;
constexpr size_t kLayerMatrices = kHidden * kQkv + kHidden * kHidden + 3 * kHidden * kFfn;
constexpr size_t kMatrices = kLayers * kLayerMatrices + 2 * kVocab * kHidden;
constexpr size_t kNorms = (2 * kLayers + 1) * kHidden;

parallel::RunSpec run_spec_of(const std::string& preset, int64_t sequence, model::Policy policy = model::Policy::Agoq) {
  parallel::RunSpec run_spec;
  run_spec.model = model::preset(preset);
  run_spec.recipe =
      model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), policy, model::Recompute::None, "");
  run_spec.precision.compute = DType::BF16;
  run_spec.sequence_length = sequence;
  return run_spec;
}

Owner saved(SavedTensor tensor) {
  return model::owner_of(model::LayerSpec(model::preset("llama3-8b"))[tensor]);
}

// Codes of `bits`, and a bf16 scale for every 128 elements.
size_t coded(size_t elements, size_t bits) {
  return elements * bits / 8 + elements / 128 * 2;
}

TEST(Layout, HoldsWhatTheFormatsSay) {
  const Layout layout = plan_layout(run_spec_of("llama3-8b", kTokens), Device::Cuda);
  EXPECT_EQ(layout.of(Owner::Weights), 2 * (kMatrices + kNorms));
  EXPECT_EQ(layout.of(Owner::Corrections), 2 * (kMatrices + kNorms));
  EXPECT_EQ(layout.of(Owner::MainGradients), coded(kMatrices, 8) + 4 * kNorms);
  EXPECT_EQ(layout.of(Owner::Moments), 2 * (coded(kMatrices, 8) + 4 * kNorms));
  EXPECT_EQ(layout.of(saved(SavedTensor::X1)), kLayers * coded(kTokens * kHidden, 4));
  EXPECT_EQ(layout.of(saved(SavedTensor::Qkv)), kLayers * 2 * kTokens * kQkv);
  EXPECT_EQ(layout.of(saved(SavedTensor::GateUp)), kLayers * coded(kTokens * 2 * kFfn, 4));
  EXPECT_EQ(layout.of(saved(SavedTensor::N1)), 0u);
  EXPECT_EQ(layout.of(saved(SavedTensor::Hidden)), 0u);
}

TEST(Layout, ReferenceHoldsEighteenBytesPerParameterAndEverythingInBf16) {
  const Layout layout = plan_layout(reference_run_spec(run_spec_of("llama3-8b", kTokens)), Device::Cuda);
  EXPECT_EQ(layout.model_state(), 18 * (kMatrices + kNorms));
  EXPECT_EQ(layout.of(saved(SavedTensor::X1)), kLayers * 2 * kTokens * kHidden);
  EXPECT_EQ(layout.of(saved(SavedTensor::N1)), kLayers * 2 * kTokens * kHidden);
  EXPECT_EQ(layout.of(saved(SavedTensor::GateUp)), kLayers * 2 * kTokens * 2 * kFfn);
  EXPECT_EQ(layout.of(saved(SavedTensor::Hidden)), kLayers * 2 * kTokens * kFfn);
}

TEST(Layout, NeedsAtMostSevenPointOneBytesPerParameter) {
  for (const std::string& preset : model::preset_names()) {
    const parallel::RunSpec run_spec = run_spec_of(preset, 256);
    const Layout layout = plan_layout(run_spec, Device::Cuda);
    EXPECT_LE(static_cast<double>(layout.model_state()) / static_cast<double>(run_spec.model.parameters()), 7.1)
        << preset;
  }
}

TEST(Layout, OwnersAddUpToTheTotal) {
  const Layout layout = plan_layout(run_spec_of("demo", 128), Device::Cpu);
  size_t sum = 0;
  for (const OwnerBytes& o : layout.owners) sum += o.bytes;
  EXPECT_EQ(sum, layout.total);
}

TEST(Layout, ComparisonLosesNoOwner) {
  const parallel::RunSpec run_spec = run_spec_of("demo", 128);
  const Layout ours = plan_layout(run_spec, Device::Cpu),
               reference = plan_layout(reference_run_spec(run_spec), Device::Cpu);
  size_t bytes = 0, other = 0;
  for (const OwnerPair& row : paired(ours, reference)) {
    EXPECT_EQ(row.bytes, ours.of(row.owner));
    EXPECT_EQ(row.reference, reference.of(row.owner));
    bytes += row.bytes;
    other += row.reference;
  }
  EXPECT_EQ(bytes, ours.total);
  EXPECT_EQ(other, reference.total);
}

// One real step in an arena of exactly the planned size: less would throw, more would show in the totals.
void expect_planned_is_held(parallel::RunSpec run_spec) {
  const Layout planned = plan_layout(run_spec, Device::Cpu);
  Arena arena(Device::Cpu, planned.total);
  parallel::TrainingState state(arena, Device::Cpu, run_spec);
  state.params().initialize(state.context(), 1);
  const auto tokens = static_cast<size_t>(run_spec.tokens());
  std::vector<int32_t> ids(tokens), positions(tokens), starts(tokens, 0);
  std::vector<float> weights(tokens, 1.0f);
  for (size_t t = 0; t < tokens; ++t) ids[t] = static_cast<int32_t>(t * 7 % 257);
  std::iota(positions.begin(), positions.end(), 0);
  const auto tensor = [&](auto& v) { return host_tensor(v.data(), {run_spec.tokens()}); };
  const parallel::MicroBatch batch{tensor(ids), tensor(ids), tensor(weights), tensor(positions), tensor(starts)};
  state.begin_step();
  state.forward_backward(batch, 0, 1.0f / static_cast<float>(tokens));
  state.optimizer().step(state.context(), 1e-3f, {});
  state.evaluate(batch);
  state.logits(batch, 3, [](std::span<const float>) {});
  EXPECT_EQ(arena.total_bytes(), planned.total);
  const std::vector<OwnerBytes> held = arena.by_owner();
  ASSERT_EQ(held.size(), planned.owners.size());
  for (size_t i = 0; i < held.size(); ++i) {
    EXPECT_EQ(held[i].owner, planned.owners[i].owner);
    EXPECT_EQ(held[i].bytes, planned.owners[i].bytes) << held[i].owner.text();
  }
}

TEST(Layout, WhatIsPlannedIsHeldWithDelayedScales) {
  parallel::RunSpec run_spec = run_spec_of("demo", 64);
  run_spec.precision.compute = DType::F32;
  constexpr ops::OperandFormat kWhole{DType::E4M3, ops::Granularity::Tensor};
  ops::Fp8Recipe recipe{kWhole, kWhole, kWhole, kWhole, kWhole};
  recipe.delayed = ops::DelayedScaling{100, false, 0};
  run_spec.precision.fp8.recipe = recipe;
  expect_planned_is_held(run_spec);
  const auto sites = static_cast<size_t>(run_spec.model.layers * 4 * 3);
  EXPECT_NEAR(static_cast<double>(plan_layout(run_spec, Device::Cpu).of(Owner::AmaxHistory)),
              static_cast<double>(sites * (100 + 1 + 4) * sizeof(float)), 512)
      << "and what aligns three tensors";
}

TEST(Layout, WhatIsPlannedIsHeld) {
  parallel::RunSpec run_spec = run_spec_of("demo", 64);
  run_spec.precision.compute = DType::F32;
  expect_planned_is_held(run_spec);
  for (const model::Policy policy :
       {model::Policy::Paper, model::Policy::Fp8, model::Policy::Bf16, model::Policy::Fp32}) {
    run_spec.recipe =
        model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), policy, model::Recompute::None, "");
    expect_planned_is_held(run_spec);
  }
  for (const model::Recompute recompute : {model::Recompute::Selective, model::Recompute::Full}) {
    run_spec.recipe =
        model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), model::Policy::Agoq, recompute, "");
    expect_planned_is_held(run_spec);
  }
}

TEST(Layout, WhatIsPlannedIsHeldInBf16AndWithoutQuantization) {
  parallel::RunSpec run_spec = run_spec_of("demo", 64);
  expect_planned_is_held(run_spec);
  expect_planned_is_held(reference_run_spec(run_spec));
}

}  // namespace
}  // namespace agoq::plan
