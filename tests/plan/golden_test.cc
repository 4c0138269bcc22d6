// The whole of a training step against PyTorch and transformers, on models of every supported kind.
#include "plan/goldens.h"

#include <cmath>

namespace agoq {
namespace {

using test::Golden;
using test::GoldenRun;

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (const std::string why = test::why_no_golden_device(); !why.empty()) GTEST_SKIP() << why;
  }
};
INSTANTIATE_TEST_SUITE_P(Models, GoldenTest, testing::ValuesIn(test::kGoldenCases),
                         [](const auto& info) { return info.param; });

constexpr double kLossTolerance = 1e-5;
constexpr double kGradientTolerance = 1e-5;  // relative L2, per tensor
constexpr double kTwentyStepTolerance = 1e-4;

double relative_error(const float* got, const float* want, int64_t n) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < n; ++i) {
    difference += (static_cast<double>(got[i]) - want[i]) * (static_cast<double>(got[i]) - want[i]);
    norm += static_cast<double>(want[i]) * want[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

// The gradient of a fused parameter against its Hugging Face parts.
void expect_gradients(const Golden& golden, GoldenRun& run) {
  for (const model::ParamId& id : run.state.params().ids()) {
    const std::vector<float> fused = run.on_host(run.state.grads().data(id).plain());
    const model::ParamRow& row = run.state.spec()[id.param];
    const float* got = fused.data();
    for (const model::HfPart& part : row.parts) {
      const Tensor want = golden.tensor("grad." + model::hf_name(part, id));
      EXPECT_LT(relative_error(got, want.as<float>(), want.count()), kGradientTolerance) << model::hf_name(part, id);
      got += want.count();
    }
  }
}

double step_loss(const Golden& golden, parallel::TrainingState& state, int64_t micro_batch) {
  const float scale = static_cast<float>(1 / golden.target_weight());
  state.begin_step();
  for (int64_t first = 0; first < golden.batch(); first += micro_batch)
    state.forward_backward(golden.micro_batch(first, micro_batch), static_cast<uint32_t>(first / micro_batch), scale);
  return state.take_loss() / golden.target_weight();
}

parallel::AdamWConfig golden_optimizer() {
  return {0.9f, 0.95f, 1e-8f, 0.1f, 1.0f};
}

TEST_P(GoldenTest, LogitsAgree) {
  const Golden golden(GetParam());
  GoldenRun run(golden, test::exact_run_spec(golden));
  const Tensor want = golden.tensor("logits").view({golden.batch() * golden.sequence(), golden.config().vocab_size});
  for (int64_t t = 0; t < want.rows(); ++t)
    run.state.logits(golden.micro_batch(0, golden.batch()), t, [&](std::span<const float> logits) {
      for (int64_t v = 0; v < want.cols(); ++v)
        ASSERT_NEAR(logits[static_cast<size_t>(v)], want.as<float>()[t * want.cols() + v], 1e-4) << "token " << t;
    });
}

TEST_P(GoldenTest, LossAndGradientsOfStepOneAgree) {
  const Golden golden(GetParam());
  GoldenRun run(golden, test::exact_run_spec(golden));
  EXPECT_NEAR(step_loss(golden, run.state, golden.batch()), golden.tensor("loss").as<float>()[0], kLossTolerance);
  expect_gradients(golden, run);
  run.state.evaluate(golden.micro_batch(0, golden.batch()));
  EXPECT_NEAR(run.state.take_loss() / golden.target_weight(), golden.tensor("loss").as<float>()[0], kLossTolerance);
}

// Uneven masks over micro-batches equal one large batch.
TEST_P(GoldenTest, MicroBatchesEqualOneLargeBatch) {
  const Golden golden(GetParam());
  parallel::RunSpec run_spec = test::exact_run_spec(golden);
  run_spec.micro_batch_size = 1;
  GoldenRun run(golden, run_spec);
  EXPECT_NEAR(step_loss(golden, run.state, 1), golden.tensor("loss").as<float>()[0], kLossTolerance);
  expect_gradients(golden, run);
}

TEST_P(GoldenTest, TwentyStepsAgree) {
  const Golden golden(GetParam());
  GoldenRun run(golden, test::exact_run_spec(golden));
  const Tensor want = golden.tensor("losses20");
  for (int64_t step = 0; step < want.count(); ++step) {
    EXPECT_NEAR(step_loss(golden, run.state, golden.batch()), want.as<float>()[step], kTwentyStepTolerance)
        << "step " << step;
    run.state.optimizer().step(run.state.context(), 3e-3f, golden_optimizer());
  }
}

// The split master is exact: the same numbers as fp32 weights, bit for bit.
TEST_P(GoldenTest, SplitMasterEqualsFp32) {
  const Golden golden(GetParam());
  parallel::RunSpec run_spec = test::exact_run_spec(golden);
  GoldenRun plain(golden, run_spec);
  run_spec.precision.master = model::MasterForm::Split;
  GoldenRun split(golden, run_spec);
  for (int step = 0; step < 5; ++step) {
    EXPECT_EQ(step_loss(golden, plain.state, golden.batch()), step_loss(golden, split.state, golden.batch()));
    plain.state.optimizer().step(plain.state.context(), 3e-3f, golden_optimizer());
    split.state.optimizer().step(split.state.context(), 3e-3f, golden_optimizer());
  }
}

// Recomputing changes memory, not numbers, when what is kept is exact.
TEST_P(GoldenTest, RecomputationChangesNothing) {
  const Golden golden(GetParam());
  for (const model::Recompute recompute : {model::Recompute::Selective, model::Recompute::Full}) {
    parallel::RunSpec run_spec = test::exact_run_spec(golden);
    run_spec.recipe =
        model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), model::Policy::Fp32, recompute, "");
    GoldenRun run(golden, run_spec);
    step_loss(golden, run.state, golden.batch());
    expect_gradients(golden, run);
  }
}

// What is planned is what is held, to the byte, and a step never needs more.
TEST_P(GoldenTest, PlanEqualsArena) {
  const Golden golden(GetParam());
  for (const model::Policy policy :
       {model::Policy::Agoq, model::Policy::Paper, model::Policy::Fp8, model::Policy::Bf16})
    for (const DType compute : {DType::F32, DType::BF16}) {
      parallel::RunSpec run_spec = test::exact_run_spec(golden, policy);
      run_spec.precision = parallel::Precision{};
      run_spec.precision.compute = compute;
      GoldenRun run(golden, run_spec);
      step_loss(golden, run.state, golden.batch());
      run.state.optimizer().step(run.state.context(), 3e-3f, golden_optimizer());
      EXPECT_EQ(run.arena.owned_bytes() + run.arena.peak_stack_bytes(), run.layout.total);
      const std::vector<OwnerBytes> held = run.arena.by_owner();
      ASSERT_EQ(held.size(), run.layout.owners.size());
      for (size_t i = 0; i < held.size(); ++i) {
        EXPECT_EQ(held[i].owner, run.layout.owners[i].owner);
        EXPECT_EQ(held[i].bytes, run.layout.owners[i].bytes) << held[i].owner.text();
      }
    }
}

// Quantized training on the golden batch goes where exact training goes.
TEST_P(GoldenTest, AgoqPolicyLearns) {
  const Golden golden(GetParam());
  parallel::RunSpec run_spec = test::exact_run_spec(golden, model::Policy::Agoq);
  run_spec.precision = parallel::Precision{};
  GoldenRun run(golden, run_spec);
  const Tensor exact = golden.tensor("losses20");
  double loss = 0;
  for (int64_t step = 0; step < exact.count(); ++step) {
    run.state.context().random.step = static_cast<uint32_t>(step);
    loss = step_loss(golden, run.state, golden.batch());
    if (step == 0) {
      EXPECT_NEAR(loss, exact.as<float>()[0], kLossTolerance);  // forward is exact
    }
    run.state.optimizer().step(run.state.context(), 3e-3f, golden_optimizer());
  }
  const double first = exact.as<float>()[0], last = exact.as<float>()[exact.count() - 1];
  EXPECT_LT(loss, last + 0.1 * (first - last));
}

}  // namespace
}  // namespace agoq
