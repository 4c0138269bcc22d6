// Whether a layer runs forward again is what the recipe says, not what happens to be stored.
#include <gtest/gtest.h>

#include "parallel/tiny_state.h"

namespace agoq::parallel {
namespace {

RunSpec recomputed_whole() {
  RunSpec run_spec = test::tiny_run_spec();
  run_spec.recipe = model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), model::Policy::Fp32,
                                       model::Recompute::Full, "");
  return run_spec;
}

std::vector<float> weights_after_a_step(const RunSpec& run_spec) {
  test::TinyState state(run_spec);
  state->params().initialize(state->context(), 1);
  state.step();
  return state.weights();
}

TEST(Recompute, WholeLayersAlthoughMoreThanTheirInputIsStored) {
  RunSpec more = recomputed_whole();
  more.recipe.set(1, model::SavedTensor::Qkv, codec::Codec::Fp32);
  EXPECT_EQ(weights_after_a_step(more), weights_after_a_step(recomputed_whole()));
}

}  // namespace
}  // namespace agoq::parallel
