// Training steps whose layers multiply in 8-bit floats, beside PyTorch's exact ones.
#include <cmath>

#include "plan/goldens.h"

namespace agoq {
namespace {

using ops::Granularity;
using test::Golden;
using test::GoldenRun;

model::Fp8Layers recipe(Granularity activations, Granularity weights, DType gradients = DType::E4M3) {
  // As --fp8-recipe has them: along tokens, rows have one scale for all.
  const Granularity dw = activations == Granularity::Row ? Granularity::Tensor : activations;
  model::Fp8Layers fp8;
  fp8.recipe = ops::Fp8Recipe{
      {DType::E4M3, activations}, {DType::E4M3, weights}, {gradients, activations}, {gradients, dw}, {DType::E4M3, dw}};
  return fp8;
}

struct Case {
  const char* name;
  model::Fp8Layers fp8;
};
model::Fp8Layers delayed() {
  model::Fp8Layers fp8 = recipe(Granularity::Tensor, Granularity::Tensor);
  fp8.recipe->delayed = ops::DelayedScaling{};
  return fp8;
}
const Case kCases[] = {{"rowwise", recipe(Granularity::Row, Granularity::Row)},
                       {"tensorwise", recipe(Granularity::Tensor, Granularity::Tensor)},
                       {"delayed", delayed()},
                       {"hybrid", recipe(Granularity::Row, Granularity::Row, DType::E5M2)},
                       {"blockwise", recipe(Granularity::Block1x128, Granularity::Block128x128)}};

double step_loss(const Golden& golden, parallel::TrainingState& state) {
  state.begin_step();
  state.forward_backward(golden.micro_batch(0, golden.batch()), 0, static_cast<float>(1 / golden.target_weight()));
  return state.take_loss() / golden.target_weight();
}

// Of all gradients together, relative L2.
double gradient_error(const Golden& golden, GoldenRun& run) {
  double off = 0, size = 0;
  for (const model::ParamId& id : run.state.params().ids()) {
    const std::vector<float> fused = run.on_host(run.state.grads().data(id).plain());
    const float* got = fused.data();
    for (const model::HfPart& part : run.state.spec()[id.param].parts) {
      const Tensor want = golden.tensor("grad." + model::hf_name(part, id));
      for (int64_t i = 0; i < want.count(); ++i)
        off += std::pow(double{*got++} - want.as<float>()[i], 2), size += std::pow(want.as<float>()[i], 2);
    }
  }
  return std::sqrt(off / size);
}

parallel::RunSpec run_spec_of(const Golden& golden, const model::Fp8Layers& fp8) {
  parallel::RunSpec run_spec = test::exact_run_spec(golden);
  run_spec.precision.fp8 = fp8;
  return run_spec;
}

class Fp8Step : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Models, Fp8Step, testing::ValuesIn(test::kGoldenCases),
                         [](const auto& info) { return info.param; });

// A step of e4m3 is 16 times one of bf16, of e5m2 32 times. A step in bf16 rounds the same operands, and all results
// beside them.
TEST_P(Fp8Step, ErrsAsTheFormatDoes) {
  const Golden golden(GetParam());
  const double exact = golden.tensor("loss").as<float>()[0];
  parallel::RunSpec rounded = run_spec_of(golden, {});
  rounded.precision.compute = DType::BF16;
  GoldenRun bf16(golden, rounded);
  step_loss(golden, bf16.state);
  const double bf16_error = gradient_error(golden, bf16);
  for (const Case& c : kCases) {
    GoldenRun run(golden, run_spec_of(golden, c.fp8));
    const double ratio = c.fp8.recipe->dy.dtype == DType::E5M2 ? 32 : 16;
    EXPECT_NEAR(step_loss(golden, run.state), exact, 0.02 * exact) << c.name;
    const double error = gradient_error(golden, run);
    EXPECT_LT(error, ratio * bf16_error) << c.name;
    EXPECT_GT(error, 4 * bf16_error) << c.name << ": less than an 8-bit float rounds";
  }
}

TEST(Fp8Steps, EvaluationMultipliesInTheComputeType) {
  const Golden golden("llama_gqa");
  GoldenRun run(golden, run_spec_of(golden, kCases[0].fp8));
  run.state.evaluate(golden.micro_batch(0, golden.batch()));
  EXPECT_NEAR(run.state.take_loss() / golden.target_weight(), golden.tensor("loss").as<float>()[0], 1e-5);
}

TEST(Fp8Steps, LayersAtTheEndsAreExcepted) {
  const Golden golden("llama_gqa");
  const int64_t layers = golden.config().layers;
  ASSERT_GE(layers, 2);
  const auto loss = [&](int64_t first, int64_t last) {
    model::Fp8Layers fp8 = kCases[0].fp8;
    fp8.excepted_at_start = first, fp8.excepted_at_end = last;
    GoldenRun run(golden, run_spec_of(golden, fp8));
    return step_loss(golden, run.state);
  };
  GoldenRun plain(golden, test::exact_run_spec(golden));
  const double exact = step_loss(golden, plain.state), all = loss(0, 0), first = loss(1, 0), last = loss(0, 1);
  EXPECT_EQ(loss(layers, 0), exact);
  EXPECT_EQ(loss(0, layers), exact);
  for (const double one : {first, last}) EXPECT_TRUE(one != all && one != exact);
  EXPECT_NE(first, last);
}

// What is recomputed is rounded as it was.
TEST(Fp8Steps, RecomputationChangesNothing) {
  const Golden golden("llama_gqa");
  const auto gradients = [&](model::Recompute recompute) {
    parallel::RunSpec run_spec = run_spec_of(golden, kCases[0].fp8);
    run_spec.recipe =
        model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), model::Policy::Fp32, recompute, "");
    GoldenRun run(golden, run_spec);
    step_loss(golden, run.state);
    std::vector<std::vector<float>> all;
    for (const model::ParamId& id : run.state.params().ids())
      all.push_back(run.on_host(run.state.grads().data(id).plain()));
    return all;
  };
  const auto kept = gradients(model::Recompute::None);
  EXPECT_EQ(gradients(model::Recompute::Selective), kept);
  EXPECT_EQ(gradients(model::Recompute::Full), kept);
}

}  // namespace
}  // namespace agoq
