// The names of what a checkpoint holds: those that saving gives are those that loading asks for.
#include "parallel/stored_state.h"

#include <gtest/gtest.h>

#include <set>

#include "parallel/tiny_state.h"

namespace agoq::parallel {
namespace {

std::set<std::string> stored_names(model::MasterForm master) {
  RunSpec run_spec = test::tiny_run_spec();
  run_spec.precision.master = master;
  test::TinyState state(run_spec);
  std::set<std::string> names;
  for (const StoredTensor& tensor : state->named_tensors()) names.insert(tensor.name);
  return names;
}

TEST(StoredState, EveryTensorBelongsToAWeightOrIsAMoment) {
  for (const model::MasterForm master : {model::MasterForm::Split, model::MasterForm::Fp32})
    for (const std::string& name : stored_names(master))
      EXPECT_NE(!stored_param(name).empty(), is_stored_moment(name)) << name;
}

// Checkpoints of before have these names.
TEST(StoredState, NamesStay) {
  const std::set<std::string> names = stored_names(model::MasterForm::Split);
  for (const char* kind :
       {"weights/", "corrections/", "exp_avg.codes/", "exp_avg.scales/", "exp_avg_sq.codes/", "exp_avg_sq.scales/"})
    EXPECT_TRUE(names.contains(std::string(kind) + "layers.1.qkv")) << kind;
  EXPECT_EQ(stored_param("corrections/layers.1.qkv"), "layers.1.qkv");
  EXPECT_EQ(stored_param("exp_avg.codes/layers.1.qkv"), "");
  EXPECT_FALSE(is_stored_moment("exp_avg/layers.1.qkv"));
}

}  // namespace
}  // namespace agoq::parallel
