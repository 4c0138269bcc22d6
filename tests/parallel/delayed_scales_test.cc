// Steps whose scales come from the steps before.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "parallel/tiny_state.h"

namespace agoq::parallel {
namespace {

using test::TinyState;

constexpr ops::OperandFormat kWhole{DType::E4M3, ops::Granularity::Tensor};

RunSpec tensorwise() {
  RunSpec run_spec = test::tiny_run_spec();
  run_spec.precision.fp8.recipe = ops::Fp8Recipe{kWhole, kWhole, kWhole, kWhole, kWhole};
  return run_spec;
}
RunSpec delayed(const ops::DelayedScaling& how = {4, false, 0}) {
  RunSpec run_spec = tensorwise();
  run_spec.precision.fp8.recipe->delayed = how;
  return run_spec;
}

std::vector<double> losses(const RunSpec& run_spec, int steps) {
  TinyState state(run_spec);
  state->params().initialize(state->context(), 3);
  std::vector<double> all;
  for (int i = 0; i < steps; ++i) all.push_back(state.step() / static_cast<double>(run_spec.tokens()));
  return all;
}

std::vector<float> history_of(TinyState& state, int64_t layer) {
  const Tensor h = state->scales()->history(layer);
  return {h.as<float>(), h.as<float>() + h.count()};
}

TEST(DelayedScales, TrainAsScalesOfThePresentDo) {
  constexpr int kSteps = 12;
  const std::vector<double> exact = losses(test::tiny_run_spec(), kSteps), present = losses(tensorwise(), kSteps),
                            before = losses(delayed(), kSteps);
  EXPECT_EQ(before[0], present[0]) << "the first step knows no scale";
  EXPECT_NE(before[kSteps - 1], exact[kSteps - 1]);
  for (int i = 0; i < kSteps; ++i) EXPECT_NEAR(before[i], exact[i], 0.01 * exact[0]) << i;
  EXPECT_LT(exact[kSteps - 1], 0.95 * exact[0]) << "or nothing was learnt";
}

TEST(DelayedScales, RememberTheWeightsLargestNumbers) {
  TinyState state(delayed());
  state->params().initialize(state->context(), 3);
  for (int i = 0; i < 2; ++i) {
    Scope scope(state->context());
    const model::LayerWeights w = state->params().acquire(state->context(), 1);
    std::vector<float> most;
    for (const model::Param p : model::kFp8Weights) {
      most.push_back(0);
      for (int64_t j = 0; j < w[p].count(); ++j) most.back() = std::max(most.back(), std::abs(w[p].as<float>()[j]));
    }
    state.step(1e-2);
    const Tensor history = state->scales()->history(1);
    for (size_t weight = 0; weight < most.size(); ++weight) {
      const float* amaxes = history.as<float>() + static_cast<int64_t>(3 * weight + 1) * history.cols();
      EXPECT_EQ(amaxes[0], most[weight]) << "weight " << weight << ", step " << i;
      EXPECT_EQ(amaxes[1] > 0, i > 0);
    }
  }
}

// All micro-batches of a step use the scales of its beginning, and only its end makes others.
TEST(DelayedScales, AreFixedWithinAStep) {
  TinyState state(delayed());
  state->params().initialize(state->context(), 3);
  state.step();
  const float* scale = state->scales()->of({0, model::Param::Down})->dy.scale.as<float>();
  const float fixed = *scale;
  const std::vector<float> history = history_of(state, 0);
  state->grads().begin_step(state->context());
  for (int i = 0; i < 2; ++i) state->forward_backward(state.batch(), i, 100.0f);
  EXPECT_EQ(*scale, fixed);
  EXPECT_EQ(history_of(state, 0), history);
  state.update(0);
  EXPECT_GT(*scale, fixed) << "of gradients that are larger by far";
}

TEST(DelayedScales, DoNotChangeInAStepThatIsSkipped) {
  TinyState state(delayed());
  state->params().initialize(state->context(), 3);
  state.step();
  const std::vector<float> first = history_of(state, 0), second = history_of(state, 1);
  const float scale = *state->scales()->of({1, model::Param::Qkv})->x.scale.as<float>();
  Bf16& norm = state->params().at({1, model::Param::AttentionNorm}).value.as<Bf16>()[0];
  const Bf16 kept = norm;
  norm = to_bf16(std::numeric_limits<float>::infinity());
  state.gradients();
  EXPECT_TRUE(std::isnan(*state->scales()->of({1, model::Param::Qkv})->x.scale.as<float>())) << "products show it";
  EXPECT_TRUE(state.update(1e-3).skipped);
  EXPECT_EQ(history_of(state, 0), first);
  EXPECT_EQ(history_of(state, 1), second);
  EXPECT_EQ(*state->scales()->of({1, model::Param::Qkv})->x.scale.as<float>(), scale);
  norm = kept;
  EXPECT_TRUE(std::isfinite(state.step()));
  EXPECT_NE(history_of(state, 1), second);
}

TEST(DelayedScales, AreOfTheLayersThatMultiplyInThem) {
  RunSpec run_spec = delayed();
  run_spec.precision.fp8.excepted_at_start = 1;
  TinyState state(run_spec);
  EXPECT_EQ(state->scales()->layers(), std::vector<int64_t>{1});
  EXPECT_EQ(state->scales()->of({0, model::Param::Qkv}), nullptr);
  EXPECT_EQ(state->scales()->of({1, model::Param::AttentionNorm}), nullptr);
  state->params().initialize(state->context(), 3);
  EXPECT_TRUE(std::isfinite(state.step()));
  EXPECT_TRUE(std::isfinite(state.step()));
}

// What is computed beside steps leaves no trace.
TEST(DelayedScales, ForgetWhatIsNoStep) {
  TinyState state(delayed()), other(delayed());
  for (TinyState* s : {&state, &other}) (*s)->params().initialize((*s)->context(), 3), s->step();
  state->grads().begin_step(state->context());
  state->forward_backward(state.batch(), 0, 1000.0f);
  state->take_loss();
  state->reset_scales();
  EXPECT_EQ(state.step(), other.step());
  EXPECT_EQ(history_of(state, 1), history_of(other, 1));
}

}  // namespace
}  // namespace agoq::parallel
