// Over many models and meshes: no stage needs more memory than the first, none leaves what a wider choice would take.
#include <gmock/gmock.h>

#include "plan/full_stages.h"

namespace agoq::plan {
namespace {

model::ModelConfig model_of(const std::string& name) {
  if (name != "70b") return model::preset(name);
  model::ModelConfig model = model::preset("llama3-8b");
  model.hidden_size = 8192;
  model.ffn_size = 28672;
  model.layers = 80;
  model.heads.query = 64;
  return model;
}

struct Case {
  std::string model;
  parallel::MeshShape mesh;
  int chunks;
  int64_t sequence;
  parallel::RunSpec run_spec() const {
    return test::pipeline_run_spec(model_of(model), parallel::training_mesh(mesh), chunks, 2 * mesh.pipeline, sequence);
  }
};

void expect_full(const Case& c) {
  SCOPED_TRACE(fmt::format("{} tp {} dp {} pp {} chunks {} S {}", c.model, c.mesh.tensor, c.mesh.data, c.mesh.pipeline,
                           c.chunks, c.sequence));
  test::expect_full_stages(c.run_spec());
}

// Gathering wide x1 and x2 over a tensor group needs workspace that can be the difference between two choices.
TEST(StageSweep, StagesAreFull) {
  for (const Case& c :
       {Case{"70b", {8, 2, 4}, 1, 8192}, Case{"llama3-8b", {8, 1, 4}, 2, 8192}, Case{"llama2-13b", {2, 2, 8}, 1, 4096},
        Case{"llama3.2-1b", {4, 1, 8}, 2, 4096}, Case{"codellama-34b", {8, 2, 2}, 1, 4096}})
    expect_full(c);
}

// The whole sweep, minutes long: plan_tests --gtest_also_run_disabled_tests --gtest_filter='*WholeSweep*'
TEST(StageSweep, DISABLED_WholeSweep) {
  int cases = 0;
  for (const char* model : {"llama3.2-1b", "llama2-7b", "llama3-8b", "llama2-13b", "codellama-34b", "70b"})
    for (const int tensor : {1, 2, 8})
      for (const int pipeline : {2, 4, 8})
        for (const int data : {1, 2})
          for (const int chunks : {1, 2})
            for (const int64_t sequence : {4096, 8192}) {
              if (data == 2 && tensor == 2) continue;
              if (model_of(model).layers < pipeline * chunks) continue;
              expect_full({model, {tensor, data, pipeline}, chunks, sequence});
              ++cases;
            }
  fmt::print("{} meshes\n", cases);
  EXPECT_GE(cases, 190);
}

}  // namespace
}  // namespace agoq::plan
